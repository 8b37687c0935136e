import pytest
import torch

from lightning_callbacks.loggers import Publisher
from lightning_callbacks.loggers.entries import LogEntries
from lightning_callbacks.monitor.sharing import Collected, Mailbox
from lightning_callbacks.samples.fixed import FixedSamples, Share
from lightning_callbacks.shared.failures import Failures


@pytest.mark.parametrize("distributed", [True, False])
@pytest.mark.parametrize("count", [1, 5, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_sample_has_one_owner(world_size, count, distributed):
    data = torch.arange(12.0)[:, None]
    found = {}
    for rank in range(world_size):
        fixed = FixedSamples(count, Share(rank, world_size, distributed=distributed))
        loaded = data[rank::world_size] if distributed else data
        for batch in loaded.split(2):
            if not fixed.complete:
                fixed.collect(batch, lambda x: x)
        assert fixed.complete
        for samples, numbers in zip(fixed.batches, fixed.numbers, strict=True):
            found |= dict(zip(numbers, samples.inputs[0][:, 0].tolist(), strict=True))
    assert found == {number: float(number) for number in range(count)}


def test_identity_knows_a_sample_again():
    x = torch.randn(4, 3)
    identities = []
    for batches in ([x], [x[:1], x[1:]], [x.flip(0)], [x.bfloat16()]):
        fixed = FixedSamples(4)
        for batch in batches:
            fixed.collect(batch, lambda x: x)
        identities.append(list(fixed.identity().values()))
    whole, split, flipped, half = identities
    assert whole == split == flipped[::-1]
    assert not set(whole) & set(half)


def part(run, step, value):
    made = LogEntries(run, step)
    made.numbers["n"].append(value)
    made.images[f"image/{value}"] = torch.zeros(2, 2, 3, dtype=torch.uint8)
    return made


def test_numbers_wait_for_all_and_pictures_for_none(pl, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, "log")
    with pytest.warns(UserWarning, match="PNG files"):
        publisher = Publisher([logger], str(tmp_path), Failures("raise"))

    def logged():
        pictures = sorted(path.parent.name for path in tmp_path.rglob("*.png"))
        return pictures, [(row["step"], row["n"]) for row in logger.experiment.metrics]

    taken = []
    box = tmp_path / "box"
    box.mkdir()
    collected, first, second = Collected(2, taken.append), Mailbox(box, 0), Mailbox(box, 1)
    collected.add(part("validate/1", 10, 1.0), publisher)
    assert logged() == (["1.0"], [])
    second.send(part("validate/1", 10, 3.0))
    collected.add(part("validate/2", 20, 5.0), publisher)
    missing = collected.finish(first, publisher, patience=0)
    assert missing == 1
    assert logged() == (["1.0", "3.0", "5.0"], [(10, 2.0), (20, 5.0)])
    assert [entries.numbers["n"][0] for entries in taken] == [1.0, 5.0, 3.0]


def test_an_unfinished_file_is_no_part(tmp_path):
    (tmp_path / "000001_00000000.unfinished").write_bytes(b"half of")
    mailbox = Mailbox(tmp_path, 0)
    assert mailbox.receive() == []
    mailbox.close()
    assert not tmp_path.exists()
