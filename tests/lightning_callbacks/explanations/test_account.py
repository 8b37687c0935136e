"""Where the relevance goes, logged while a model trains."""

import pytest
from captum.attr import Saliency

from captum_transformer import AttentionRollout, ConservativeLRP, TransformerAttribution
from lightning_callbacks import AttributionMonitor
from lightning_callbacks.explanations.explanation import accounts
from lightning_callbacks.samples.batch import Samples
from tests.lightning_callbacks.models import tiny_vit
from tests.lightning_callbacks.runs import fit, read

PAIRS = [(0, 1), (1, 3), (1, 1)]


@pytest.mark.parametrize("method", [TransformerAttribution, ConservativeLRP, AttentionRollout])
def test_accounts_are_those_of_the_explained_classes(method):
    network, x = tiny_vit()
    found = accounts(method(network), Samples((x,), None), PAIRS, internal_batch_size=2)
    assert [account.total.numel() for account in found] == [2, 1]
    for account, chosen in zip(found, (PAIRS[:2], PAIRS[2:]), strict=True):
        rows, classes = map(list, zip(*chosen, strict=True))
        expected = method(network).account(x[rows], classes)
        assert account.shares() == pytest.approx(expected.shares())


def test_methods_without_an_account_are_left_out():
    network, x = tiny_vit()
    assert accounts(Saliency(network), Samples((x,), None), PAIRS) == []


def test_it_is_logged_where_it_is_wanted(pl, trainer_options):
    monitor = AttributionMonitor(
        {"plain": lambda model: ConservativeLRP(model, attention_rule=False), "none": Saliency},
        num_samples=3,
        account=True,
        on_error="raise",
    )
    events = read(fit(pl, trainer_options, monitor, max_epochs=1))
    shares = {
        tag.split("/")[2]: events.Scalars(tag)[0].value
        for tag in events.Tags()["scalars"]
        if tag.startswith("attribution/account/")
    }
    assert {"inputs", "biases"} <= set(shares)
    assert sum(shares.values()) == pytest.approx(1, rel=1e-3)
