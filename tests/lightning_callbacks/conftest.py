from pathlib import Path

import pytest
import torch

from tests.lightning_callbacks import explained

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Leaves one case of each test that is marked so to the second name of Lightning.

    Both have the same code. What may differ is what asks which of them it is: the classes that
    inherit from both (`shared/flavors.py`), which hooks a module has of its own, manifests,
    loggers, pickles, configuration files.
    """
    seen, left_out = set(), set()
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        if given.get("pl") == "lightning.pytorch" and item.path.is_relative_to(HERE):
            test = item.nodeid.partition("[")[0]
            if test in seen or not item.get_closest_marker("both"):
                left_out.add(item)
            seen.add(test)
    config.hook.pytest_deselected(items=[*left_out])
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    params=["pytorch_lightning", pytest.param("lightning.pytorch", marks=pytest.mark.slow)]
)
def pl(request):
    """Both names of Lightning; what holds for one holds for the other, or the slow run says so."""
    if request.param == "pytorch_lightning":
        import pytorch_lightning

        return pytorch_lightning
    return pytest.importorskip("lightning.pytorch")


@pytest.fixture(scope="session")
def vit():
    return explained.vit()


@pytest.fixture(scope="session")
def images():
    return explained.images()


@pytest.fixture
def trainer_options(tmp_path: Path):
    return {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": tmp_path,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
    }
