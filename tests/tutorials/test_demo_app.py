"""The page of the demo explains its inputs."""

import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.browser import BROWSERS, Page, browser

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


@pytest.fixture(scope="module")
def pictures(demo):
    return demo.image_explainer()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TransformerAttribution", "AttnLRP"])
def test_each_class_is_in_its_half_of_the_example(demo, pictures, method):
    for half, name in enumerate(pictures[1]):
        explained = demo.explained(pictures[0], Image.fromarray(demo.example()), name, method)
        halves = explained.map.clamp(min=0).tensor_split(2, 1)
        assert halves[half].sum() > 3 * halves[1 - half].sum()


@pytest.fixture(scope="module")
def address(demo, pictures):
    pytest.importorskip("gradio")
    page = demo.app(pictures, demo.text_explainer())
    yield page.launch(prevent_thread_lock=True, quiet=True)[1]
    page.close()


@pytest.mark.slow
def test_the_page_draws_pictures_and_texts(demo, address, tmp_path):
    gradio_client = pytest.importorskip("gradio_client")
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


SEEN = "Array.from(document.querySelectorAll({!r})).filter(e => e.offsetParent)"
MAP = SEEN.format("img[src*='/file=']") + ".at(-1)"


def choose(page, label, option):
    """Chooses an option of one of Gradio's lists."""
    page.click(SEEN.format(f'input[aria-label="{label}"]') + "[0]")
    chosen = SEEN.format("[role=option]") + f".find(e => e.innerText.includes({option!r}))"
    page.wait_for(f"!!({chosen})")
    page.click(f"({chosen})")


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_in_a_browser_a_picture_is_dropped_and_a_text_typed(demo, address, tmp_path):
    Image.fromarray(load_sample_images().images[0]).save(tmp_path / "photo.png")
    with Page(1300, 900) as page:
        page.open(address)
        page.wait_for(SEEN.format("img[src*='/file=']") + ".length == 2")
        sources = {page.run(f"{MAP}.src")}

        def drawn_anew():
            known = ", ".join(map(repr, sources))
            sources.add(page.wait_for(f"{MAP} && ![{known}].includes({MAP}.src) && {MAP}.src"))

        page.click("document.querySelector(\"[aria-label='Remove Image']\")")
        page.wait_for(SEEN.format("img[src*='/file=']") + ".length == 0")
        page.choose_file("input[type=file]", tmp_path / "photo.png")
        page.wait_for(SEEN.format("img[src*='/file=']") + ".length == 2")
        drawn_anew()
        choose(page, "Class", "flower")
        drawn_anew()
        choose(page, "Method", "AttnLRP")
        drawn_anew()
        time.sleep(1)  # it fades in
        (tmp_path / "picture.png").write_bytes(page.screenshot())

        page.click(SEEN.format("[role=tab]") + "[1]")
        page.wait_for(SEEN.format("textarea") + ".length")
        page.wait_for("document.body.innerText.includes('good (1)')")
        page.click(SEEN.format("textarea") + "[0]")
        page.run(SEEN.format("textarea") + "[0].select()")
        page.type("the plot was dull though the cast seemed loud")
        page.wait_for("document.body.innerText.includes('bad (0)')")
        choose(page, "Class", "good")
        page.wait_for("document.body.innerText.includes('good (1)')")
        time.sleep(1)
        (tmp_path / "text.png").write_bytes(page.screenshot())
