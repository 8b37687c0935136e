"""Saved graphs compute the same whichever order in memory compilers choose for their tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.decomposition import select_decomp_table
from torch.export import default_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from captum_transformer import AttnLRP
from captum_transformer.captured.ordered import in_any_order
from tests.attr.subjects import subject
from tests.captured.models import assert_same, classifier, values
from tests.captured.test_regions import ordered


@pytest.mark.parametrize("decompositions", [default_decompositions, select_decomp_table])
@pytest.mark.parametrize(
    "seed", [0, 7, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (6, 9, 18))]
)
def test_random_operations_that_depend_on_an_order(seed: int, decompositions: Any) -> None:
    x, run = torch.arange(24.0).reshape(2, 3, 4) - 11, ordered(seed)
    program = torch.export.export(in_any_order(make_fx(run)(x), [x]), (x,))
    other = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))
    for one, expected in zip(program.module()(other), run(other), strict=True):
        assert torch.equal(one, expected)
    found = program.run_decompositions(decompositions()).module()(other)
    torch.testing.assert_close(list(found), run(other))


@pytest.mark.slow
def test_a_model_with_a_cache_as_inductor_writes_it_out(tmp_path: Path) -> None:
    explained = subject("GPT-2")
    named = explained.named
    captured = AttnLRP(explained.model).capture(
        explained.inputs, explained.target, additional_forward_kwargs=named
    )
    captured.save(tmp_path / "explain.pt2")
    program = torch.export.load(tmp_path / "explain.pt2")
    (graph,) = captured._graphs.values()
    args, kwargs = graph.example.as_served(graph.example.example())
    written = program.run_decompositions(select_decomp_table()).module()
    expected = program.module()(*args, **kwargs)
    torch.testing.assert_close(written(*args, **kwargs), expected, equal_nan=True)


@pytest.mark.slow
def test_attention_that_is_written_out_as_something_else_is_refused(tmp_path: Path) -> None:
    """PyTorch's default decomposition has the weights in place of the sums of exponentials."""
    captured = AttnLRP(classifier()).capture(values(), 1)
    captured.save(tmp_path / "explain.pt2")
    program = torch.export.load(tmp_path / "explain.pt2")
    assert_same(program.module()(values(1), torch.tensor([2] * 3)), captured(values(1), 2))
    with pytest.raises(ValueError, match="permute"):
        program.run_decompositions()
