"""Explains pictures with every method, and asks how good the maps are."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.study.bootstrap import Score
from benchmarks.study.methods import (
    CAPTUM,
    INTEGRATION_STEPS,
    OF_EACH_VALUE,
    PIXELS,
    RANDOM,
    TRANSFORMER,
)
from benchmarks.study.order import DIRECTIONS, Order, untied
from benchmarks.study.store import Maps, Measured
from captum_transformer import TransformerMethod
from captum_transformer.metrics import (
    Curve,
    energy_inside,
    pixel_perturbation,
    pointing_game,
    segmentation_scores,
)

BATCH = 32


class Pictures:
    """Pictures as the model takes them, and what may be asked about each.

    Args:
        model: returns scores ``(samples, classes)``.
        images: ``(samples, channels, height, width)``.
        targets: by name, which class of each picture is explained: ``(samples,)``.
        black: what black is for the model: a value that broadcasts to the images.
        device: where to compute.
        ours: this package's methods.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Mapping[str, Tensor],
        black: Tensor,
        device: torch.device,
        ours: Mapping[str, Callable[[Any], TransformerMethod]] = TRANSFORMER,
    ) -> None:
        self.model = model.to(device).eval()
        self.images, self.targets, self.device = images, dict(targets), device
        self.black = black.to(device, images.dtype)
        self._ours = ours
        self._by_pixel: dict[str, Maps] = {}

    def methods(self) -> dict[str, Callable[[], Maps]]:
        """What computes the maps of each method, by its name."""
        found: dict[str, Callable[[], Maps]] = {}
        for name in (*self._ours, *CAPTUM):
            found[name] = partial(self._of_patches, name)
            if name in OF_EACH_VALUE:
                found[name + PIXELS] = partial(self._of_pixels, name)
        found[RANDOM] = partial(self._random, by_pixel=False)
        found[RANDOM + PIXELS] = partial(self._random, by_pixel=True)
        return found

    def _of_patches(self, name: str) -> Maps:
        if name in self._ours:
            method = self._ours[name](self.model)
            return self._maps(
                lambda images, target: _as_grid(method.attribute_tokens(images, target=target))
            )
        grid = self._grid()
        maps = self._of_pixels(name).items()
        return {target: F.adaptive_avg_pool2d(relevance, grid) for target, relevance in maps}

    def _of_pixels(self, name: str) -> Maps:
        if name not in self._by_pixel:
            self._by_pixel[name] = self._maps(partial(self._pixels, name))
        return self._by_pixel[name]

    def _maps(self, explain: Callable[[Tensor, Tensor], Tensor]) -> Maps:
        return {
            name: torch.cat(
                [
                    explain(images.to(self.device), target.to(self.device)).detach().cpu()
                    for images, target in zip(
                        self.images.split(BATCH), targets.split(BATCH), strict=True
                    )
                ]
            )
            for name, targets in self.targets.items()
        }

    def _pixels(self, name: str, images: Tensor, target: Tensor) -> Tensor:
        if name in self._ours:
            relevance = self._ours[name](self.model).attribute(images, target=target)
        elif name == "IntegratedGradients":
            relevance = CAPTUM[name](self.model).attribute(
                images,
                baselines=self.black.expand_as(images[:1]),
                target=target,
                n_steps=INTEGRATION_STEPS,
                internal_batch_size=2 * BATCH,
            )
        else:
            relevance = CAPTUM[name](self.model).attribute(images, target=target)
        return relevance.sum(1)

    def _grid(self) -> tuple[int, int]:
        """How many patches there are in a column and in a row."""
        image = self.images[:1].to(self.device)
        tokens = TRANSFORMER["RawAttention"](self.model).attribute_tokens(image, target=0)
        height, width = _as_grid(tokens).shape[1:]
        return height, width

    def _random(self, *, by_pixel: bool) -> Maps:
        size = tuple(self.images.shape[2:]) if by_pixel else self._grid()
        generator = torch.Generator().manual_seed(0)
        relevance = torch.rand((len(self.images), *size), generator=generator)
        return dict.fromkeys(self.targets, relevance)

    def perturbation(self, maps: Maps, labels: Tensor) -> Measured:
        """CVPR 2021: accuracy while pixels turn black, the most or least relevant first."""
        scores, curves = {}, {}
        first, *others = self.targets
        everything = torch.arange(len(labels))
        for direction, better in DIRECTIONS:
            curve = self._hits(maps[first], labels, direction, everything)
            found = {first: curve}
            for name in others:
                # Where the model is right, the map for the predicted class is that for the label.
                differs = (maps[name] != maps[first]).flatten(1).any(1).nonzero()[:, 0]
                hits = curve.scores.clone()
                if len(differs):
                    hits[differs] = self._hits(maps[name], labels, direction, differs).scores
                found[name] = Curve(curve.fractions, hits)
            for name, hit in found.items():
                areas = 100 * hit.area(start_at_zero=False).double()
                scores[f"{name}, {direction}"] = Score.of(areas.tolist(), better)
                curves[f"{name}, {direction}"] = (hit.fractions.tolist(), hit.mean().tolist())
        return Measured(scores, curves)

    def _hits(self, relevance: Tensor, labels: Tensor, direction: Order, rows: Tensor) -> Curve:
        """Whether the prediction for some of the pictures is right, step by step."""
        order = untied(self.to_pixels(relevance))
        curves = []
        for part in rows.split(BATCH):
            images, ranks = self.images[part].to(self.device), order[part].to(self.device)
            label = labels[part].to(self.device)
            curve = pixel_perturbation(
                self.model, images, ranks, label, baselines=self.black, order=direction
            )
            curves.append(curve.hits(label))
        return Curve.cat(curves)

    def segmentation(
        self, relevance: Tensor, masks: Tensor, ignore: Tensor | None = None
    ) -> Measured:
        """CVPR 2021: the map, cut off at its mean, as a segmentation."""
        found = segmentation_scores(self.to_pixels(relevance), masks, ignore=ignore)
        accuracy = torch.stack([100 * found.correct, found.labelled], 1)
        overlap = torch.stack([100 * found.intersection, found.union], 2).flatten(1)
        return Measured(
            {
                "pixel accuracy": Score(accuracy.tolist(), "ratios"),
                "mIoU": Score(overlap.tolist(), "ratios"),
                "mAP": Score.of((100 * found.average_precisions).tolist()),
            },
            {},
        )

    def localisation(self, relevance: Tensor, masks: Tensor) -> Measured:
        """Whether the highest place, and how much of all positive relevance, is on the object."""
        pixels = self.to_pixels(relevance)
        return Measured(
            {
                "pointing game": Score.of((100 * pointing_game(pixels, masks)).tolist()),
                "energy inside": Score.of((100 * energy_inside(pixels, masks)).tolist()),
            },
            {},
        )

    def to_pixels(self, relevance: Tensor) -> Tensor:
        """Brings maps of patches to the size of the pictures, bilinearly as the paper does."""
        size = self.images.shape[2:]
        if relevance.shape[1:] == size:
            return relevance
        large = F.interpolate(relevance[:, None], tuple(size), mode="bilinear")
        return large[:, 0]


def _as_grid(tokens: Tensor) -> Tensor:
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ValueError(
            f"The study needs a square grid of patches, got {tokens.shape[1]} of them."
        )
    return tokens.unflatten(1, (side, side))
