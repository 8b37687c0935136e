"""Captured calls are saved as ONNX models, which ONNX Runtime runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_transformer import AttnLRP, Contrast
from tests.captured.models import Block, classifier, values

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.slow


class Masked(Block):
    """Each token attends to those before it, by a flag or by a mask."""

    mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            *parts, attn_mask=self.mask, is_causal=self.mask is None, scale=0.5
        )
        return x + self.mlp(x + self.out(attended.transpose(1, 2).flatten(2)))


def masked() -> nn.Module:
    model = classifier(Masked, blocks=2)
    mask = torch.linspace(-2, 1, 36).reshape(6, 6)
    mask[4], mask[1, 3:] = -torch.inf, -torch.inf  # a token attends to none
    model.blocks[1].mask = mask
    return model


class Patches(nn.Module):
    """Convolutions with all options, the last one transposed, before a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, stride=2, padding=1, dilation=2, groups=2)
        self.then = nn.ConvTranspose2d(4, 8, 2, stride=2, output_padding=1)
        self.classify = classifier()

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.then(self.first(x)).flatten(2).transpose(1, 2))


def patches() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Patches().eval()


def images(seed: int = 0) -> Tensor:
    return torch.randn(3, 4, 8, 9, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(masked, values), (patches, images)],
    ids=["attention", "convolutions"],
)
def test_onnx_runtime_gives_the_same(model: Any, inputs: Any, tmp_path: Path) -> None:
    method = AttnLRP(model())
    method.capture(inputs(), 1).save(tmp_path / "explain.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "explain.onnx")
    target = torch.tensor([2, 0, 4])
    given = {"inputs": inputs(1).numpy(), "target": target.numpy()}
    (found,) = session.run(None, given)
    expected = method.attribute(inputs(1), target)
    largest = float(expected.abs().max())
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5 * largest)


def test_several_targets_have_outputs_with_names(tmp_path: Path) -> None:
    method, targets = AttnLRP(classifier()), [3, Contrast(3, rather_than=1)]
    captured = method.capture(values(), targets, of="attribute_targets")
    captured.save(tmp_path / "explain.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "explain.onnx")
    assert [one.name for one in session.get_outputs()] == ["relevance_0", "relevance_1"]
    names = [one.name for one in session.get_inputs()]
    given = [values(1).numpy(), *(np.full(3, number) for number in (2, 2, 0))]
    found = session.run(None, dict(zip(names, given, strict=True)))
    expected = captured(values(1), [2, Contrast(2, rather_than=0)])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match="Got: 2 Expected: 3"):
        session.run(None, dict(zip(names, (one[:2] for one in given), strict=True)))
