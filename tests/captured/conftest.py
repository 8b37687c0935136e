"""Which methods a quick run captures."""

from pathlib import Path

import pytest

from captum_transformer import TransformerAttribution

HERE = Path(__file__).parent
# Its graph is several times as large as the others'.
LARGE = (TransformerAttribution, "TransformerAttribution")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of several methods capture the smaller graphs; the others are slow."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.is_relative_to(HERE) and params.get("method") in LARGE:
            item.add_marker(pytest.mark.slow)
