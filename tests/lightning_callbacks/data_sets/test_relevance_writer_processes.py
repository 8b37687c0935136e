"""Two processes explain a data set together."""

import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from captum_transformer import AttnLRP, ConservativeLRP
from lightning_callbacks import RelevanceDataset, RelevanceWriter
from lightning_callbacks.data_sets.shards import check_shard
from tests.lightning_callbacks.explained import explainer, predict, predict_in_two_processes
from tests.lightning_callbacks.processes import Failed, alone, needs_fork

pytestmark = [needs_fork, pytest.mark.slow]


@pytest.mark.both
@pytest.mark.parametrize("left", [11, 1, 0])
def test_two_processes_write_each_sample_once(pl, trainer_options, tmp_path, vit, images, left):
    if left < 11:
        module, one = explainer(pl, vit, AttnLRP, tokens=True), DataLoader(images, batch_size=1)
        writer = RelevanceWriter(tmp_path)
        predict(pl, trainer_options, module, one, writer, limit_predict_batches=11 - left)
    before = {path.name for path in (tmp_path / "shards").glob("*")}
    writing = {"every_n_batches": 2}
    alone(predict_in_two_processes, pl.__name__, trainer_options, AttnLRP, tmp_path, writing)

    read = RelevanceDataset(tmp_path)
    assert read.sample_ids.tolist() == list(range(11))
    table = pq.read_table(tmp_path / "index.parquet").to_pydict()
    assert table["sample_id"] == list(range(11))
    written = {path.name for path in (tmp_path / "shards").iterdir()} - before
    checksum = read.manifest["checksum"]
    columns = [check_shard(tmp_path / "shards" / name, checksum) for name in written]
    ids = sorted(i for column in columns for i in column["sample_id"].tolist())
    assert ids == list(range(11 - left, 11))
    if left == 11:
        # Lightning deals the samples out in turns.
        assert {len(set((c["sample_id"] % 2).tolist())) for c in columns} == {1}
    expected = AttnLRP(vit).attribute_tokens(images.tensors[0], target=read.targets).float()
    found = torch.stack([item.attributions["input_0"] for item in read])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_all_processes_stop_when_the_first_refuses(pl, trainer_options, tmp_path, vit, images):
    loader = DataLoader(images, batch_size=4)
    module = explainer(pl, vit, AttnLRP, tokens=True)
    predict(pl, trainer_options, module, loader, RelevanceWriter(tmp_path))
    with pytest.raises(Failed, match=r"AttnLRP there, .*ConservativeLRP here"):
        alone(predict_in_two_processes, pl.__name__, trainer_options, ConservativeLRP, tmp_path, {})
