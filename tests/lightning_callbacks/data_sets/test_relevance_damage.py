"""Files that are truncated, changed, lost or foreign never give other numbers."""

import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import pytorch_lightning
import torch
from captum.attr import Saliency
from torch.utils.data import DataLoader

from captum_transformer import AttnLRP
from captum_transformer.errors import DamagedDataError
from lightning_callbacks import RelevanceDataset, RelevanceWriter
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks import explained
from tests.lightning_callbacks.explained import explainer, predict

OPTIONS = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}
FILES = ("manifest.json", "index.parquet", "shards/0", "shards/1", "shards/2")


def explain(folder, images, method=Saliency, size=4, **options):
    module = explainer(pytorch_lightning, explained.vit(), method, tokens=method is AttnLRP)
    writer = RelevanceWriter(folder)
    loader = DataLoader(images, batch_size=size, sampler=writer.remaining(images))
    predict(pytorch_lightning, OPTIONS, module, loader, writer, **options)


@pytest.fixture(scope="module")
def original(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("explained")
    explain(folder, images, AttnLRP)
    return folder


@pytest.fixture(scope="module")
def right(original):
    return list(RelevanceDataset(original))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy")


def file_of(folder, name):
    if name.startswith("shards/"):
        return sorted((folder / "shards").glob("*.safetensors"))[int(name[-1])]
    return folder / name


def damage(path, draw):
    content = bytearray(path.read_bytes())
    # Half of the time where formats have their headers and footers.
    ends = draw.choice([range(100), range(len(content) - 100, len(content)), range(len(content))])
    place = draw.choice(ends) % len(content)
    kind = draw.choice(["truncate", "flip", "overwrite"])
    if kind == "truncate":
        del content[place:]
    elif kind == "flip":
        content[place] ^= 1 << draw.randrange(8)
    else:
        content[place : place + 8] = draw.randbytes(min(8, len(content) - place))
    path.write_bytes(content)
    return f"{kind} {path.name} at {place}"


def attempt(action):
    try:
        return action(), None
    except DamagedDataError as error:
        return None, str(error)


def everything(read):
    return [(item, read.scores[row].item()) for row, item in enumerate(read)]


def same(found, right):
    assert [item.sample_id for item in found] == [item.sample_id for item in right]
    for one, other in zip(found, right, strict=True):
        assert (one.target, one.prediction) == (other.target, other.prediction)
        assert one.score == pytest.approx(other.score, rel=1e-6)
        assert one.attributions.keys() == other.attributions.keys()
        for name, values in one.attributions.items():
            torch.testing.assert_close(values, other.attributions[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("seed", range(150))
def test_reading_gives_the_right_relevance_or_names_the_file(folder, right, seed):
    draw = random.Random(seed)
    path = file_of(folder, draw.choice(FILES))
    what = damage(path, draw)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, refusal = attempt(lambda: everything(RelevanceDataset(folder)))
    if refusal is not None:
        assert path.name in refusal, what
        return
    assert path.name != "index.parquet" or all(path.name in str(w.message) for w in caught), what
    same([item for item, _ in found], right)
    assert [score for _, score in found] == [item.score for item in right], what


@pytest.mark.parametrize("seed", range(15))
def test_a_resumed_run_writes_anew_what_is_broken(folder, right, images, seed):
    draw = random.Random(1000 + seed)
    path = file_of(folder, FILES[seed % len(FILES)])
    what = damage(path, draw)
    before = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, refusal = attempt(lambda: explain(folder, images, AttnLRP))
    if refusal is not None:
        assert path.name == "manifest.json", what
        assert "manifest.json is damaged" in refusal
        assert path.read_bytes() == before, "nothing is written into a folder like that"
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(list(RelevanceDataset(folder)), right)
    if path.suffix == ".safetensors" and not path.exists():
        # It may still be of use to somebody.
        assert path.with_name(f"{path.name}.damaged").read_bytes() == before


def test_each_damage_is_named(folder, images):
    shard = file_of(folder, "shards/1")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DamagedDataError, match=rf"{shard.name} .*another size.*\n.*again"):
        RelevanceDataset(folder)
    with pytest.warns(UserWarning, match=rf"{shard.name} is damaged .*explained again"):
        explain(folder, images, AttnLRP)
    assert len(RelevanceDataset(folder)) == 11

    index = folder / "index.parquet"
    index.write_bytes(index.read_bytes()[:200])
    with pytest.warns(UserWarning, match=r"index.parquet is damaged .*shards are read"):
        read = RelevanceDataset(folder)
    read.save_index()
    assert len(pq.read_table(index)) == 11

    manifest = folder / "manifest.json"
    manifest.write_text(
        manifest.read_text(encoding="utf-8").replace('"samples": 11', '"samples": 12'),
        encoding="utf-8",
    )
    for act in (lambda: RelevanceDataset(folder), lambda: explain(folder, images, AttnLRP)):
        with pytest.raises(DamagedDataError, match=r"manifest.json is damaged \(its content"):
            act()


def test_shards_without_a_manifest_are_refused(folder, images):
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="no manifest"):
        RelevanceDataset(folder)
    with pytest.raises(MisconfigurationException, match=r"holds shards, but no manifest\.json"):
        explain(folder, images, AttnLRP)
    assert not (folder / "manifest.json").exists()


def test_shards_of_another_folder_are_refused(folder, images, tmp_path):
    explain(tmp_path / "other", images)
    for path in (tmp_path / "other/shards").iterdir():
        shutil.copy(path, folder / "shards")
    with pytest.raises(DamagedDataError, match="belongs to other explanations"):
        RelevanceDataset(folder)


def test_lost_shards_and_a_lost_index_are_made_anew(folder, images, right):
    file_of(folder, "shards/0").unlink()
    (folder / "index.parquet").unlink()
    assert len(RelevanceDataset(folder, partial=True)) == 7
    explain(folder, images, AttnLRP)
    same(list(RelevanceDataset(folder)), right)


def test_maps_that_are_no_numbers_are_counted(tmp_path, images):
    class Overflows(Saliency):
        def attribute(self, inputs, **options):
            maps = super().attribute(inputs, **options)
            maps[0, 0, 0, :2] = torch.tensor([float("inf"), float("nan")])
            return maps

    with pytest.warns(UserWarning, match="3 of 11 samples .* NaN or infinite: 0, 4, 8"):
        explain(tmp_path, images, Overflows)
    assert RelevanceDataset(tmp_path).non_finite.tolist() == [2, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0]


def test_two_runs_do_not_write_into_one_folder(tmp_path, images):
    class Second(pytorch_lightning.Callback):
        refusal = None

        def on_predict_batch_start(self, *args):
            if self.refusal is None:
                with pytest.raises(MisconfigurationException) as caught:
                    explain(tmp_path, images)
                self.refusal = str(caught.value)

    second = Second()
    writer = RelevanceWriter(tmp_path)
    trainer = pytorch_lightning.Trainer(**OPTIONS, logger=False, callbacks=[writer, second])
    module = explainer(pytorch_lightning, explained.vit(), Saliency)
    trainer.predict(module, DataLoader(images, batch_size=4), return_predictions=False)
    assert "Another run writes into" in second.refusal
    assert len(RelevanceDataset(tmp_path)) == 11
    explain(tmp_path, images)


@pytest.mark.skipif(sys.platform == "win32", reason="has other locks")
def test_a_run_of_another_process_is_waited_for_until_it_is_dead(tmp_path, images):
    holds = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
    holds += "print('process 1 on there', file=f, flush=True); print(flush=True); input()"
    command = [sys.executable, "-c", holds, str(tmp_path / ".lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        process.stdout.readline()
        with pytest.raises(MisconfigurationException, match="process 1 on there"):
            explain(tmp_path, images)
        process.kill()
    explain(tmp_path, images)
    assert len(RelevanceDataset(tmp_path)) == 11


def test_ids_of_no_sample_are_refused(tmp_path, images):
    module = explainer(pytorch_lightning, explained.vit(), Saliency)
    loader = DataLoader(images, batch_size=2, sampler=[0, 1, 2, -1])
    with pytest.raises(ValueError, match="sampler gives -1, but the data set has the samples 0 to"):
        predict(pytorch_lightning, OPTIONS, module, loader, RelevanceWriter(tmp_path))
    assert RelevanceDataset(tmp_path, partial=True).sample_ids.tolist() == [0, 1]


def test_folders_that_are_not_mounted_are_refused():
    with pytest.raises(MisconfigurationException, match="s3://bucket/maps"):
        RelevanceWriter("s3://bucket/maps")


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "maps"
    path.write_text("something else", encoding="utf-8")
    with pytest.raises(MisconfigurationException, match="maps is a file"):
        RelevanceWriter(path)
    assert not Path("s3:").exists()
