"""Which of torch's operators a quick run asks."""

from collections import Counter
from pathlib import Path

import pytest
from torch.testing._internal import common_utils

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of every operator ask a twentieth of them; the rest is for the run of everything."""
    asked: Counter[str] = Counter()
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.is_relative_to(HERE) and params.keys() & {"name", "info"}:
            test = getattr(item, "originalname", item.name)
            if asked[test] % 20:
                item.add_marker(pytest.mark.slow)
            asked[test] += 1


@pytest.fixture(autouse=True)
def _asked_by_no_test_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each sample, PyTorch reads the sources of all callers, in search of its own tests."""
    monkeypatch.setattr(common_utils, "extract_test_fn", lambda: None)
