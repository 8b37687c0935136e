"""Draws the pictures of a page anew: python docs/images/draw.py visualization.

Runs the page's examples in an empty folder and puts what they drew into docs/images/<page>. What
the page links as .jpg was drawn over a photo: as PNG it would weigh many times as much.
"""

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

DOCS = Path(__file__).resolve().parents[1]


def main(page: str) -> None:
    """Runs a page and collects its pictures."""
    torch.set_num_threads(1)
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    target = DOCS / "images" / page
    target.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        namespace: dict[str, object] = {}
        for block in blocks:
            exec(compile(block, page, "exec"), namespace)
        for name in re.findall(rf"\(images/{page}/([\w-]+\.\w+)\)", text):
            with Image.open(Path(name).with_suffix(".png")) as picture:
                options = {"quality": 88, "subsampling": 0, "optimize": True}
                picture.convert("RGB").save(target / name, **options)
        os.chdir(DOCS)


if __name__ == "__main__":
    main(sys.argv[1])
