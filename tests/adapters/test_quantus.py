"""Quantus measures the methods of this package."""

import numpy as np
import pytest
import timm
import torch

from captum_transformer import AttnLRP, TransformerAttribution
from captum_transformer.adapters.quantus import explain_func


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, num_classes=5).eval()


X = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
Y = np.array([3, 1])


def test_the_relevance_of_the_method(model):
    found = explain_func(AttnLRP, gamma=0.05)(model, X, Y, device="cpu", softmax=False)
    expected = AttnLRP(model, gamma=0.05).attribute(torch.from_numpy(X), torch.from_numpy(Y))
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("method", [AttnLRP, TransformerAttribution])
def test_metrics_call_it(model, method):
    quantus = pytest.importorskip("quantus")
    given = {"model": model, "x_batch": X, "y_batch": Y, "device": "cpu"}
    computed = quantus.Sparseness(disable_warnings=True)(
        **given, a_batch=None, explain_func=explain_func(method)
    )
    ready = quantus.Sparseness(disable_warnings=True)(
        **given, a_batch=explain_func(method)(model, X, Y)
    )
    np.testing.assert_allclose(computed, ready)
    assert np.isfinite(computed).all()
    # This one explains inputs that it has changed by itself.
    changed = quantus.MaxSensitivity(nr_samples=2, disable_warnings=True)(
        **given, a_batch=None, explain_func=explain_func(method)
    )
    assert np.isfinite(changed).all()
