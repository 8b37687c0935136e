import pytest
import torch

from lightning_callbacks.explanations.by_position import by_position
from lightning_callbacks.samples.batch import Samples

X, IDS, MASK = torch.randn(4, 3), torch.arange(20).reshape(4, 5), torch.ones(4, 5)


def named(**inputs):
    return Samples(tuple(inputs.values()), None, (), {"mask": MASK}, tuple(inputs))


def test_gaps_are_filled_with_defaults_and_the_end_is_left_out():
    def forward(ids, x, kind="k", mask=None, more=0):
        raise AssertionError

    samples = by_position(named(ids=IDS, x=X), forward)
    assert samples.inputs == (IDS, X)
    assert samples.names is None
    assert samples.additional_forward_args == ("k", MASK)
    assert samples.additional_forward_kwargs == {}


def test_modules_and_names_of_their_own():
    class Module(torch.nn.Module):
        def forward(self, pixels, mask):
            raise AssertionError

    assert by_position(named(pixels=X), Module()).additional_forward_args == (MASK,)
    assert by_position(named(x=X), Module()).additional_forward_args == (MASK,)


def test_samples_by_position_stay_by_position():
    samples = Samples((X,), None, (MASK,))
    assert by_position(samples, lambda **anything: None) is samples


@pytest.mark.parametrize(
    "forward",
    [
        lambda **batch: None,
        lambda mask, ids, x: None,
        lambda x, mask, ids: None,
        lambda ids, x: None,
        lambda ids, x, needed, mask: None,
        lambda ids, x, *, mask: None,
        lambda ids, x, **rest: None,
    ],
    ids=["all", "mask first", "between", "no mask", "needs more", "by name only", "the rest"],
)
def test_functions_that_take_them_otherwise_are_refused_with_advice(forward):
    advice = r"lambda ids, x, mask: module\(ids=ids, x=x, mask=mask\)"
    with pytest.raises(ValueError, match=rf"position: \(ids, x, mask\).*{advice}"):
        by_position(named(ids=IDS, x=X), forward)
