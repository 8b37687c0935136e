"""TensorBoard's own server, and its page in a browser.

python tutorials/quickstart.py
python -m tests.lightning_callbacks.loggers.tensorboard_page runs/quickstart \
    docs/images/tensorboard.png

draws the picture of the documentation anew.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def serving(log_dir, runs=1):
    """The address of TensorBoard's server, on a free port of this machine alone.

    Args:
        log_dir: What it shows.
        runs: How many runs to wait for.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log_dir)]
    command += ["--host", "127.0.0.1", "--port", "0"]
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


def browser():
    """A browser, or None."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def heatmap_cards(server, screenshot):
    """Opens the page of time series.

    Args:
        server: The server's address.
        screenshot: Where to save what is to be seen.

    Returns:
        The HTML of the cards that have a picture.
    """
    page = f"{server}?tagFilter=attribution_sample#timeseries"
    with tempfile.TemporaryDirectory() as profile:
        command = [browser(), "--headless=new", "--disable-gpu", f"--user-data-dir={profile}"]
        if os.geteuid() == 0:
            command.append("--no-sandbox")
        command += ["--window-size=1500,1000", "--virtual-time-budget=20000", "--dump-dom"]
        command += [f"--screenshot={screenshot}", page]
        for _ in range(6):
            # The page draws a card when it comes into sight, which the browser's virtual time, in
            # which everything is at once, sometimes forgets.
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
            cards = re.findall(r"<image-card .*?</image-card>", done.stdout, re.DOTALL)
            drawn = [card for card in cards if re.search(r'<img[^>]*src="[^"]*imageData', card)]
            if drawn:
                return drawn
    return []


def main():
    """Takes the picture."""
    log_dir, screenshot = map(Path, sys.argv[1:])
    with serving(log_dir) as server:
        assert heatmap_cards(server, screenshot.resolve()), "The page has drawn no heatmap."


if __name__ == "__main__":
    main()
