"""The page of the demo explains what is given to it."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

SCRIPT = Path(__file__).parents[2] / "tutorials" / "demo_app.py"


@pytest.fixture(scope="module")
def demo():
    spec = spec_from_file_location("demo_app", SCRIPT)
    module = sys.modules["demo_app"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["TransformerAttribution", "AttnLRP"])
def test_the_word_that_decides_has_most(demo, method):
    explainer, names = demo.text_explainer()
    assert names == ["bad", "good"]
    explained = demo.explained(explainer, demo.TEXT, demo.PREDICTED, method)
    assert (explained.label, explained.method) == ("good (1)", method)
    assert explained.top(1)[0][0] == "wonderful"
    assert demo.explained(explainer, demo.TEXT, "bad", method).target == 0


@pytest.mark.slow
def test_the_page_draws_pictures_and_texts(demo, tmp_path):
    gradio_client = pytest.importorskip("gradio_client")
    page = demo.app(demo.image_explainer(), demo.text_explainer())
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = gradio_client.Client(address, verbose=False, download_files=str(tmp_path))
        for photo, name in zip(load_sample_images().images, ("temple", "flower"), strict=True):
            Image.fromarray(photo).save(tmp_path / "photo.png")
            drawn = client.predict(
                gradio_client.handle_file(tmp_path / "photo.png"), name, "AttnLRP",
                api_name="/picture",
            )  # fmt: skip
            with Image.open(drawn) as picture:
                assert picture.height > 256
        words = client.predict(demo.TEXT, demo.PREDICTED, "AttnLRP", api_name="/text")
        assert "wonderful" in words
        assert "good (1)" in words
    finally:
        page.close()
