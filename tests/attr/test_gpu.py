"""The methods on a CUDA device."""

import pytest
import torch

from tests.attr.subjects import METHODS, SUBJECTS, as_tuple, assert_close, attributed, subject

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_cuda_equals_cpu(name: str, method: str) -> None:
    result = as_tuple(subject(name).to("cuda").attribute(METHODS[method]))

    assert all(attribution.is_cuda for attribution in result)
    assert_close(tuple(a.cpu() for a in result), attributed(name, method), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm ViT", "BERT", "nn.TransformerEncoder"])
def test_autocast_stays_finite(name: str, method: str, dtype: torch.dtype) -> None:
    given = subject(name).to(torch.float32).to("cuda")

    with torch.autocast("cuda", dtype):
        (result,) = as_tuple(given.attribute(METHODS[method]))

    assert result.is_cuda
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert result.any()


@pytest.mark.parametrize("method", METHODS)
def test_random_state_of_the_device_stays(method: str) -> None:
    given = subject("timm ViT").to("cuda")
    given.model.train()
    before = torch.cuda.get_rng_state()

    given.attribute(METHODS[method])

    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_target_may_be_on_another_device(method: str) -> None:
    given = subject("timm ViT").to("cuda")
    result = given.attribute(METHODS[method], target=torch.tensor(given.target))

    assert_close(result.cpu(), attributed("timm ViT", method), 1e-6)
