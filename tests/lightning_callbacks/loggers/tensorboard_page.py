"""TensorBoard's own server, and its page in a browser.

python tutorials/quickstart.py
python -m tests.lightning_callbacks.loggers.tensorboard_page runs/quickstart \
    docs/images/tensorboard.png

draws the picture of the documentation: the cards of one sample at three steps.
"""

import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

from PIL import Image

from tests.browser import Page

CARDS = "document.querySelectorAll('image-card')"


@contextlib.contextmanager
def serving(log_dir, runs=1):
    """The address of TensorBoard's server, on a free port of this machine alone.

    Args:
        log_dir: What it shows.
        runs: How many runs to wait for.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log_dir)]
    command += ["--host", "127.0.0.1", "--port", "0", "--samples_per_plugin", "images=100"]
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(folder, "said.txt").open("w+", encoding="utf-8") as file,
        subprocess.Popen(command, stdout=file, stderr=file) as process,
    ):
        said = Path(file.name)
        try:
            end = time.monotonic() + 60
            while not (
                found := re.search(r"http://127\.0\.0\.1:\d+/", said.read_text(encoding="utf-8"))
            ):
                assert process.poll() is None, said.read_text(encoding="utf-8")
                assert time.monotonic() < end, said.read_text(encoding="utf-8")
                time.sleep(0.2)
            address = found[0]
            # The runs are loaded in the background.
            while len(ask(address, "data/runs")) < runs:
                assert time.monotonic() < end
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()


def get(address, path, **query):
    url = f"{address}{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


def ask(address, path, **query):
    return json.loads(get(address, path, **query))


def open_cards(page, server, tags, count):
    """Opens the page of time series and waits for its cards.

    Args:
        page: The browser's page.
        server: The server's address.
        tags: The beginning of the tags to show.
        count: How many cards to wait for.

    Returns:
        The cards' titles.
    """
    page.open(f"{server}?tagFilter={tags}#timeseries")
    page.wait_for(f"{CARDS}.length >= {count}")
    _wait_for_pictures(page)
    return page.run(f"Array.from({CARDS}, c => c.querySelector('tb-truncated-path').title)")


def _wait_for_pictures(page):
    page.wait_for(
        f"Array.from({CARDS}).every(c => {{ const i = c.querySelector('img');"
        " return i && i.complete && i.naturalWidth })"
    )


def at_step(page, share):
    """Moves the slider of each card, and takes its picture.

    Args:
        page: The page with the cards.
        share: Where to: 0 is the first step, 1 the last.

    Returns:
        A picture of each card.
    """
    cards = range(page.run(f"{CARDS}.length"))
    for card in cards:
        slider = f"{CARDS}[{card}].querySelector('input[type=range]')"
        last = int(page.run(f"{slider}.max"))
        page.run(f"{slider}.focus()")
        for key in ["ArrowLeft"] * last + ["ArrowRight"] * round(share * last):
            page.press(key)
    page.run("document.activeElement.blur()")
    time.sleep(1)  # the mark around a slider that moves fades away
    _wait_for_pictures(page)
    return [Image.open(io.BytesIO(page.screenshot(f"{CARDS}[{card}]"))) for card in cards]


def main():
    """Takes the picture."""
    log_dir, screenshot = map(Path, sys.argv[1:])
    with serving(log_dir) as server, Page(950, 1000, zoom=2) as page:
        open_cards(page, server, "attribution_sample_3/label/", 2)
        columns = [at_step(page, share) for share in (0, 0.2, 1)]
    gap, (width, height) = 24, columns[0][0].size
    whole = Image.new("RGB", (3 * (width + gap) + gap, 2 * (height + gap) + gap), "#f5f6f7")
    for column, cards in enumerate(columns):
        for row, card in enumerate(cards):
            whole.paste(card, (gap + column * (width + gap), gap + row * (height + gap)))
    whole.quantize(256, dither=Image.Dither.NONE).save(screenshot, optimize=True)


if __name__ == "__main__":
    main()
