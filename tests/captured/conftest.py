"""Which methods a quick run captures."""

from pathlib import Path

import pytest

from captum_transformer import TransformerAttribution
from tests.quick import leave_out

HERE = Path(__file__).parent
# Its graph is several times as large as the others'.
LARGE = (TransformerAttribution, "TransformerAttribution")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of several methods capture the smaller graphs; the others are slow."""
    leave_out(items, HERE, lambda given: given.get("method") in LARGE)
