"""Writes explanations to files: pictures, pages and numbers."""

import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave
from torch import Tensor

from captum_transformer.cli import names
from captum_transformer.cli.explanation import Class, Explanation, ImageExplanation, TextExplanation
from captum_transformer.visualization import (
    MapOptions,
    html_page,
    image_grid,
    panel,
    to_array,
    token_html,
    token_strip,
)
from captum_transformer.visualization.canvas import Image


def write_png(path: Path, explanations: Sequence[Explanation], options: MapOptions) -> None:
    """Writes one picture, with several explanations below each other.

    Args:
        path: The file.
        explanations: The explanations to draw.
        options: How maps are drawn.
    """
    path.write_bytes(_png(_stacked([_picture(each, options) for each in explanations])))


def write_html(path: Path, explanations: Sequence[Explanation], options: MapOptions) -> None:
    """Writes one self-contained page.

    Args:
        path: The file.
        explanations: The explanations to show.
        options: How maps are drawn.
    """
    parts = [_section(each, options) for each in explanations]
    path.write_text(html_page("Explanations", parts), encoding="utf-8")


def write_safetensors(path: Path, explanations: Sequence[Explanation], _: MapOptions) -> None:
    """Writes tensors named ``<number of the input>/<method>/<class>``, and metadata.

    Args:
        path: The file.
        explanations: The explanations; for texts, the relevance of the tokens is written.
        _: Not used, since only pictures have options.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    about = []
    for number, explanation in enumerate(explanations):
        attributions, tokens = explanation.attributions, {}
        if isinstance(explanation, TextExplanation):
            attributions, tokens = explanation.of_tokens, {"tokens": list(explanation.tokens)}
        for method, every in attributions.items():
            for chosen, values in zip(explanation.classes, every, strict=True):
                # A copy, since saved tensors must not share memory.
                tensors[f"{number}/{method}/{_key(chosen)}"] = values.clone().contiguous()
        classes = {_key(each): [each.name, each.score] for each in explanation.classes}
        about.append({"input": explanation.name, "classes": classes, **tokens})
    save_file(tensors, path, metadata={"inputs": json.dumps(about)})


def _key(chosen: Class) -> str:
    return chosen.name if chosen.number is None else str(chosen.number)


Write = Callable[[Path, Sequence[Explanation], MapOptions], None]

FORMATS: dict[str, Write] = dict(
    zip(names.FORMATS, (write_png, write_html, write_safetensors), strict=True)
)
"""The functions that write files, by the ending of the file's name."""


def _picture(explanation: Explanation, options: MapOptions) -> Image:
    if isinstance(explanation, TextExplanation):
        colors = _colors(explanation, options)
        return _stacked(
            [
                token_strip(explanation.words, values, caption, **colors)
                for caption, values in _captioned(explanation)
            ]
        )
    if not isinstance(explanation, ImageExplanation):
        raise TypeError(f"no picture is known for {type(explanation).__name__}")
    captioned, options = _captioned(explanation), {**options, "grid": explanation.grid}
    if len(captioned) == 1:
        ((caption, values),) = captioned
        return panel(explanation.image, values, caption, **options)
    columns = [f"{chosen}\n{chosen.said}" for chosen in explanation.classes]
    rows = {
        method: dict(zip(columns, every, strict=True))
        for method, every in explanation.attributions.items()
    }
    return to_array(image_grid(explanation.image, rows, title=explanation.name, **options))


def _colors(explanation: TextExplanation, options: MapOptions) -> dict[str, Any]:
    """Returns how the tokens of a text are coloured, in all formats."""
    sign, scale = options.get("sign", "auto"), options.get("scale")
    return {"sign": sign, "scale": scale, "off_scale": explanation.off_scale}


def _section(explanation: Explanation, options: MapOptions) -> str:
    heading = f"<h2>{escape(explanation.name)}</h2>"
    if isinstance(explanation, TextExplanation):
        colors = _colors(explanation, options)
        return heading + "".join(
            token_html(explanation.words, values, caption, **colors)
            for caption, values in _captioned(explanation)
        )
    data = b64encode(_png(_picture(explanation, options))).decode()
    said = "; ".join(f"{chosen}, {chosen.said}" for chosen in explanation.classes)
    picture = f'<img src="data:image/png;base64,{data}" alt="Map for {escape(said)}">'
    return f"{heading}<figure style='margin:0'>{picture}</figure><p>{escape(said)}</p>"


def _captioned(explanation: Explanation) -> list[tuple[str, Tensor]]:
    return [
        (f"{chosen}, {chosen.said}\n{method}", values)
        for method, every in explanation.attributions.items()
        for chosen, values in zip(explanation.classes, every, strict=True)
    ]


def _stacked(pictures: Sequence[Image]) -> Image:
    width = max(picture.shape[1] for picture in pictures)
    padded = [
        np.pad(each, ((0, 0), (0, width - each.shape[1]), (0, 0)), constant_values=255)
        for each in pictures
    ]
    return np.concatenate(padded)


def _png(picture: Image) -> bytes:
    stream = BytesIO()
    imsave(stream, picture, format="png")
    return stream.getvalue()
