"""Differences of Windows and macOS that can be simulated here."""

import errno
import os
import pickle
import stat
import sys
import types
from pathlib import Path

import pytest
import pytorch_lightning
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

from captum_transformer import AttnLRP
from lightning_callbacks import (
    AttributionMonitor,
    ExplainerModule,
    RelevanceDataset,
    RelevanceWriter,
)
from lightning_callbacks.data_sets.lock import FolderLock
from lightning_callbacks.shared.atomic import written
from lightning_callbacks.shared.flavors import MisconfigurationException

fcntl = pytest.importorskip("fcntl", reason="simulates Windows where it isn't")


@pytest.fixture
def windows_files(monkeypatch):
    """Folders can't be opened, and only what is open for writing can be flushed."""
    opened, flushed = os.open, []

    def open_file(path, *arguments, **options):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        assert stat.S_ISREG(os.fstat(descriptor).st_mode)
        flushed.append(descriptor)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", fsync)
    return flushed


@pytest.fixture
def windows_locks(monkeypatch):
    """`msvcrt` in the place of `fcntl`: bytes that are locked can't be read by others."""
    locked, read = {}, os.read

    def locking(descriptor, mode, count):
        assert mode == "no wait"
        held = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        if locked.setdefault(held, descriptor) != descriptor:
            raise PermissionError(errno.EACCES, "Permission denied")
        assert count == 1

    def read_what_is_free(descriptor, count):
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        file = os.fstat(descriptor).st_ino
        for (other, byte), owner in locked.items():
            if other == file and owner != descriptor and start <= byte < start + count:
                raise PermissionError(errno.EACCES, "Permission denied")
        return read(descriptor, count)

    module = types.SimpleNamespace(locking=locking, LK_NBLCK="no wait")
    monkeypatch.setitem(sys.modules, "msvcrt", module)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(os, "read", read_what_is_free)
    monkeypatch.setattr(sys, "platform", "win32")
    return locked


@pytest.mark.usefixtures("windows_locks")
def test_who_has_a_folder_is_said_where_locked_bytes_cannot_be_read(tmp_path, monkeypatch):
    lock = FolderLock(tmp_path)
    # As another process would find it.
    monkeypatch.setattr("lightning_callbacks.data_sets.lock._held", set())
    with pytest.raises(MisconfigurationException, match=f"process {os.getpid()} on "):
        FolderLock(tmp_path)
    del lock


@pytest.mark.parametrize("missing", ["the module", "locks of the file system"])
def test_where_nothing_can_be_locked_a_warning_says_so(tmp_path, monkeypatch, missing):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if missing == "the module":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="can't be locked .*(fcntl|No locks)"):
        lock = FolderLock(tmp_path)
    with pytest.raises(MisconfigurationException, match="Another run writes into"):
        FolderLock(tmp_path)
    lock.release()


def test_a_file_is_flushed_before_it_gets_its_name(tmp_path, windows_files):
    with written(tmp_path / "file") as path:
        path.write_bytes(b"content")
        assert not windows_files
    assert len(windows_files) == 1
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.usefixtures("windows_files")
def test_a_data_set_is_written_and_what_spawned_processes_get_is_pickled(tmp_path):
    samples = TensorDataset(torch.rand(3, 3, 32, 32), torch.arange(3))
    module = ExplainerModule(timm.create_model("test_vit", num_classes=3, img_size=32), AttnLRP)
    writer = RelevanceWriter(tmp_path / "maps")
    loader = DataLoader(samples, batch_size=2, sampler=writer.remaining(samples))
    sent = (module, loader, writer, AttributionMonitor({"AttnLRP": AttnLRP}))
    module, loader, writer, _ = pickle.loads(pickle.dumps(sent))

    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        callbacks=[writer],
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
    )
    trainer.predict(module, loader, return_predictions=False)
    data_set = pickle.loads(pickle.dumps(RelevanceDataset(tmp_path / "maps")))
    assert [sample.sample_id for sample in data_set] == [0, 1, 2]
    assert all(m.any() for sample in data_set for m in sample.attributions.values())
