"""The runner of trainings with several processes ends all of them, also after errors."""

import os
import time

import pytest

from tests.lightning_callbacks.processes import Failed, alone, needs_fork, side_by_side

pytestmark = needs_fork


def wait_for_ever(rank, folder):
    (folder / str(rank)).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(3600)


def two_wait(folder):
    side_by_side(wait_for_ever, 2, folder)


def raises():
    raise KeyError("the reason")


def dies():
    os._exit(1)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_what_hangs_is_killed_with_all_its_processes(tmp_path):
    alone(os.getpid)  # the first imports much
    with pytest.raises(TimeoutError, match="two_wait has not ended after 5 seconds"):
        alone(two_wait, tmp_path, limit_s=5)
    pids = [int((tmp_path / name).read_text(encoding="utf-8")) for name in "01"]
    end = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


def test_what_fails_says_why():
    with pytest.raises(Failed, match="KeyError: 'the reason'"):
        alone(raises)
    with pytest.raises(Failed, match="dies has died"):
        alone(dies)


def test_each_has_an_environment_of_its_own(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1")
    assert alone(os.getenv, "MASTER_PORT") is None
