"""Each explanation has the id of its sample, with any collate function."""

import random
from collections import UserDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertForSequenceClassification

from captum_transformer import GenericAttentionRelevance
from lightning_callbacks import RelevanceDataset, RelevanceWriter
from lightning_callbacks.data_sets.order import keeps_order, keeps_samples, read_ids, rearranged
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks.explained import explainer, predict

LENGTHS = (4, 7, 5, 6, 3)


class Texts(Dataset):
    """Texts of several lengths, each with its index."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.texts = [torch.randint(1, 50, (n,), generator=generator) for n in LENGTHS]

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, number):
        return {"number": number, "input_ids": self.texts[number]}


def padded(items):
    ids = pad_sequence([item["input_ids"] for item in items], batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "number": torch.tensor([item["number"] for item in items]),
    }


def by_length(items):
    return padded(sorted(items, key=lambda item: -len(item["input_ids"])))


def without_five(items):
    return padded([item for item in items if len(item["input_ids"]) != 5])


def model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    return BertForSequenceClassification(config).eval()


def loader(collate, size=2):
    return DataLoader(Texts(), batch_size=size, collate_fn=collate)


def check(folder, ids):
    bert, texts = model(), Texts().texts
    method = GenericAttentionRelevance(bert)
    read = RelevanceDataset(folder, partial=True)
    assert read.sample_ids.tolist() == ids
    for number, item in zip(ids, read, strict=True):
        text = texts[number]
        expected = method.attribute(text[None], target=item.target)[0]
        found = item.attributions["input_ids"]
        torch.testing.assert_close(found[: len(text)], expected, rtol=1e-4, atol=1e-6)
        assert (found[len(text) :] == 0).all()


@pytest.mark.parametrize(
    ("collate", "ids"), [(by_length, [0, 1, 2, 3, 4]), (without_five, [0, 1, 3, 4])]
)
def test_a_collate_function_that_sorts_or_drops_needs_ids(
    pl, trainer_options, tmp_path, collate, ids
):
    module = explainer(pl, model(), GenericAttentionRelevance)
    with pytest.raises(
        (MisconfigurationException, ValueError), match=r"RelevanceWriter\(\.\.\., ids=\.\.\.\)"
    ):
        predict(pl, trainer_options, module, loader(collate), RelevanceWriter(tmp_path / "refused"))

    writer = RelevanceWriter(tmp_path / "out", ids="number")
    if len(ids) < len(LENGTHS):
        with pytest.warns(UserWarning, match="1 samples have not been explained"):
            predict(pl, trainer_options, module, loader(collate), writer)
    else:
        predict(pl, trainer_options, module, loader(collate), writer)
    check(tmp_path / "out", ids)


def test_a_run_that_sorts_goes_on(pl, trainer_options, tmp_path):
    module = explainer(pl, model(), GenericAttentionRelevance)
    writer = RelevanceWriter(tmp_path, ids=lambda batch: batch["number"].tolist())
    predict(pl, trainer_options, module, loader(by_length), writer, limit_predict_batches=1)
    assert RelevanceDataset(tmp_path, partial=True).sample_ids.tolist() == [0, 1]
    # In one batch, in which those that are there already lie among the others.
    again = RelevanceWriter(tmp_path, ids="number")
    predict(pl, trainer_options, module, loader(by_length, 5), again)
    check(tmp_path, [0, 1, 2, 3, 4])


def test_a_collate_function_that_draws_needs_to_be_vouched_for(pl, trainer_options, tmp_path):
    def noisy(items):
        return {**padded(items), "noise": torch.rand(len(items))}

    module = explainer(pl, model(), GenericAttentionRelevance)
    with pytest.raises(MisconfigurationException, match="noisy, does not leave each sample"):
        predict(pl, trainer_options, module, loader(noisy), RelevanceWriter(tmp_path / "refused"))
    writer = RelevanceWriter(tmp_path / "out", collate_keeps_order=True)
    predict(pl, trainer_options, module, loader(noisy), writer)
    check(tmp_path / "out", [0, 1, 2, 3, 4])


def test_random_numbers_of_the_program_are_what_they_were(pl, trainer_options, tmp_path):
    class Drawing(Texts):
        def __getitem__(self, number):
            random.random()
            return {**super().__getitem__(number)}

    def state(ids):
        torch.manual_seed(5)
        random.seed(5)
        data = DataLoader(Drawing(), batch_size=2, collate_fn=padded)
        module = explainer(pl, model(), GenericAttentionRelevance)
        writer = RelevanceWriter(tmp_path / str(ids), ids=ids)
        predict(pl, trainer_options, module, data, writer)
        return random.getstate()

    assert state("number") == state(None)


class Pair(NamedTuple):
    values: torch.Tensor
    labels: list


def test_collate_functions_that_keep_the_order():
    items = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 5.0]), torch.tensor([2.0, 5.0])]
    texts = ["b", "a", "c"]
    assert keeps_order(torch.stack, items)
    assert keeps_order(lambda given: Pair(torch.stack(given), [1] * 3), items)
    assert keeps_order(lambda given: UserDict(x=torch.stack(given).numpy()), items)
    assert keeps_order(lambda given: [list(given), max(given)], texts)
    assert keeps_order(lambda given: [list(given), list(given)], texts[:2])
    assert not keeps_order(sorted, texts)
    assert not keeps_order(lambda given: [sorted(given), list(given)], texts)
    assert not keeps_order(lambda given: torch.stack(given[1:]), items)
    # The samples are alike, so nothing can be seen.
    assert not keeps_order(torch.stack, items[1:])

    def emptying(given):
        return torch.stack([item.pop("x") for item in given])

    assert keeps_order(emptying, [{"x": item} for item in items])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"number": torch.tensor([0, 5])}, "gives 5, but the data set has the samples 0 to 4"),
        ({"number": torch.tensor([-1, 2])}, "gives -1"),
        ({"number": [1, 1]}, "a sample twice in one batch"),
        ({"number": ["a", "b"]}, "got list from a dict"),
        ({"number": torch.tensor([0.0, 1.0])}, "as whole numbers"),
        ({}, "got NoneType from a dict"),
        (torch.zeros(2), "got NoneType from a Tensor"),
    ],
)
def test_impossible_ids_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        read_ids(batch, "number", 5)


class Turns(BertForSequenceClassification):
    """Its hook sorts by length, as for packed sequences."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        order = batch["attention_mask"].sum(1).argsort(descending=True, stable=True)
        return {name: values[order] for name, values in batch.items()}


@pytest.mark.both
def test_a_hook_that_sorts_needs_ids(pl, trainer_options, tmp_path):
    bert = model()
    bert.__class__ = Turns
    module = explainer(pl, bert, GenericAttentionRelevance)
    with pytest.raises(MisconfigurationException, match="A hook on a batch's way to the model"):
        predict(pl, trainer_options, module, loader(padded), RelevanceWriter(tmp_path / "refused"))
    predict(pl, trainer_options, module, loader(padded), RelevanceWriter(tmp_path, ids="number"))
    check(tmp_path, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("ids", [None, "number"])
def test_reading_a_batch_that_sorts_is_refused(pl, trainer_options, tmp_path, ids):
    def read(batch):
        further = {"attention_mask": batch["attention_mask"]}
        return {"input_ids": batch["input_ids"]}, None, further

    def read_sorted(batch):
        order = batch["attention_mask"].sum(1).argsort(descending=True)
        return read({name: values[order] for name, values in batch.items()})

    module = explainer(pl, model(), GenericAttentionRelevance, batch_to_inputs=read)
    writer = RelevanceWriter(tmp_path / "out", ids=ids)
    predict(pl, trainer_options, module, loader(padded), writer)
    check(tmp_path / "out", [0, 1, 2, 3, 4])

    # Each is tried out, also where another has been.
    module.batch_to_inputs = read_sorted
    writer = RelevanceWriter(tmp_path / "refused", ids=ids)
    with pytest.raises(MisconfigurationException, match="batch_to_inputs does not leave"):
        predict(pl, trainer_options, module, loader(padded), writer)


def test_batches_that_overtake_each_other_are_refused(pl, trainer_options, tmp_path):
    data = DataLoader(Texts(), batch_size=1, num_workers=2, in_order=False)
    module = explainer(pl, model(), GenericAttentionRelevance)
    with pytest.raises(MisconfigurationException, match="in_order=False"):
        predict(pl, trainer_options, module, data, RelevanceWriter(tmp_path / "refused"))
    predict(pl, trainer_options, module, data, RelevanceWriter(tmp_path, ids="number"))
    check(tmp_path, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("order", [[2, 1, 0], [1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 0, 1]])
def test_no_change_of_order_goes_unnoticed(order):
    def moves(items):
        return torch.tensor([items[number] for number in order])

    assert not keeps_order(moves, [5, 7, 6])
    assert not keeps_samples(lambda batch: batch[order], torch.tensor([5, 7, 6]), 3)
    assert keeps_order(torch.tensor, [5, 7, 6])


def test_a_hook_that_turns_batches_round_is_refused_also_of_two(pl, trainer_options, tmp_path):
    class Turned(pl.LightningDataModule):
        def predict_dataloader(self):
            return loader(padded)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {name: values.flip(0) for name, values in batch.items()}

    module = explainer(pl, model(), GenericAttentionRelevance)
    with pytest.raises(MisconfigurationException, match="A hook on a batch's way to the model"):
        predict(pl, trainer_options, module, Turned(), RelevanceWriter(tmp_path))


def test_a_batch_is_rearranged():
    batch = UserDict(x=torch.arange(3), names=["a", "b", "c"], size=3, y=np.arange(3))
    found = rearranged(batch, [2, 0, 1])
    assert type(found) is UserDict
    assert (found["x"].tolist(), found["y"].tolist()) == ([2, 0, 1], [2, 0, 1])
    assert (found["names"], found["size"]) == (["c", "a", "b"], 3)
    assert batch["x"].tolist() == [0, 1, 2]
    pair = rearranged((torch.tensor([1, 2]), torch.tensor([3, 4])), [1, 0])
    assert [values.tolist() for values in pair] == [[2, 1], [4, 3]]


def test_batches_without_samples_are_not_rearranged():
    for batch in (torch.rand(2), {"x": torch.rand(2, 3)}, object(), (1, 2), "abc"):
        assert rearranged(batch, [2, 0, 1]) is batch
