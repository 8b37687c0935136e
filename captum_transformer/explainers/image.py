"""Explains pictures with maps on the original picture."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer.attr.shown import progress_of
from captum_transformer.calling.isolation import explaining, modules_of
from captum_transformer.description import describe
from captum_transformer.errors import InvalidInputError
from captum_transformer.explainers.classes import ClassNames, Names
from captum_transformer.explainers.defaults import for_images
from captum_transformer.explainers.device import device_of, precision_of
from captum_transformer.explainers.explained_image import ExplainedImage
from captum_transformer.explainers.pictures import picture_of
from captum_transformer.explainers.readout import (
    Activation,
    Readout,
    activation_of,
    class_readout,
    class_scores,
    with_targets,
)
from captum_transformer.visualization.patches import by_patch
from captum_transformer.visualization.places import Places, places_of

_PIXELS = "pixel_values"


class ImageExplainer:
    """Explains the classes that a model finds in a picture, by a map on the picture.

    Preprocessing may resize and crop a picture: relevance is mapped back to the place in the
    original picture that it comes from (see
    :func:`~captum_transformer.visualization.places_of`).

    Args:
        model: the model, or a function that runs one, with a score for each class as its output.
        processor: preprocesses a picture: an image processor of Transformers, whose output is
            passed to the model by name, or a function from an image of PIL to a tensor
            ``(channels, height, width)``, such as the transforms of timm and torchvision.
        method: creates the method from a forward function: a class of this package, or for example
            ``lambda forward: AttnLRP(forward, gamma=0.05)``. None: the method that the study
            recommends for the model's readout.
        names: the names of the classes, if the model has others or none.
        activation: ``"softmax"`` or ``"sigmoid"``, which converts scores to probabilities; None
            for the one in the configuration of a Transformers model.

    Example:
        >>> import timm, torch
        >>> from PIL import Image
        >>> from captum_transformer.explainers import ImageExplainer
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=2, depth=2)
        >>> transform = timm.data.create_transform((3, 32, 32))
        >>> explainer = ImageExplainer(model, transform, names=["cat", "dog"])
        >>> explained = explainer(Image.new("RGB", (80, 60), "red"), target="dog")
        >>> explained.label, explained.grid, tuple(explained.relevance.shape)
        ('dog (1)', (2, 2), (3, 32, 32))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        processor: Any,
        method: Callable[[Callable[..., Any]], Any] | None = None,
        *,
        names: Names | None = None,
        activation: Activation | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.method = method
        self.names = ClassNames(model, names)
        self.activation = activation or activation_of(model)

    def __call__(
        self,
        picture: Any,
        target: Any = None,
        *,
        rather_than: Any = None,
        show_progress: bool = False,
    ) -> Any:
        """Explains a class.

        Args:
            picture: the picture: a path, an image of PIL, or uint8 values as an array
                ``(H, W, 3)`` or ``(H, W)`` or a tensor ``(3, H, W)``; or a list of several.
            target: the number or the name of a class; None for the predicted one. For a list of
                pictures, a list with one for each.
            rather_than: another class: the difference of the two scores is explained.
            show_progress: show a progress bar over several pictures.

        Returns:
            An :class:`ExplainedImage`, or a list of them for a list of pictures.

        Raises:
            InvalidInputError: if it is not a picture, or the processor doesn't return exactly one
                image.
            InvalidTargetError: if there is no such class.
            AmbiguousOutputError: if the model returns no scores of classes.
            ValueError: if the processor crops at random, so that places are not known.
        """
        if not isinstance(picture, list):
            return self._explain(picture, target, rather_than)
        pairs = with_targets(picture, target, "pictures")
        found = []
        with progress_of(self, len(pairs), show=show_progress) as step:
            for each, of_each in pairs:
                found.append(self._explain(each, of_each, rather_than))
                step()
        return found

    def _explain(self, given: Any, target: Any, rather_than: Any) -> ExplainedImage:
        picture = picture_of(given)
        device = device_of(self.model)
        inputs = {name: tensor.to(device) for name, tensor in self._prepared(picture).items()}
        pixels = inputs.pop(_PIXELS)
        if pixels.is_floating_point():  # processors return single precision
            pixels = pixels.to(precision_of(self.model) or pixels.dtype)
        places = places_of(self._process, [picture])

        def run(pixels: Tensor, **context: Any) -> Any:
            by_name = self._names_inputs
            return self.model(**{_PIXELS: pixels}, **context) if by_name else self.model(pixels)

        with explaining(modules_of(self.model), [pixels]), torch.no_grad():
            output = run(pixels, **inputs)
        names = self.names.of(class_scores(output).shape[1])
        readout = class_readout(output, target, names, self.activation, rather_than)
        seen = describe(
            lambda pixels, **context: class_scores(run(pixels, **context)),
            {"pixels": pixels},
            additional_forward_kwargs=inputs,
        )
        method = (self.method or for_images(seen).method)(
            lambda pixels, **context: readout.read(run(pixels, **context))
        )
        (relevance,) = method.attribute(pixels, additional_forward_kwargs=inputs)
        grid = seen.grids.get("pixels")
        return _explained(picture, places, readout, pixels[0], relevance, grid, target, method)

    @property
    def _names_inputs(self) -> bool:
        """Whether the processor is one of Transformers, whose outputs have names."""
        return hasattr(self.processor, "model_input_names")

    def _process(self, pictures: list[Any]) -> Tensor:
        if self._names_inputs:
            made: Tensor = self.processor(images=pictures, return_tensors="pt")[_PIXELS]
            return made
        return torch.stack([torch.as_tensor(self.processor(each)) for each in pictures])

    def _prepared(self, picture: Any) -> dict[str, Tensor]:
        if self._names_inputs:
            made: Mapping[str, Any] = self.processor(images=[picture], return_tensors="pt")
            prepared = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        else:
            prepared = {_PIXELS: self._process([picture])}
        pixels = prepared.get(_PIXELS)
        if pixels is None or pixels.dim() != 4 or len(pixels) != 1:
            given = "no pixel_values" if pixels is None else f"values of {tuple(pixels.shape)}"
            raise InvalidInputError(
                "The processor must return one image (1, channels, height, width) for a picture, "
                f"got {given}."
            )
        return prepared


def _explained(
    picture: Any,
    places: Places,
    readout: Readout,
    pixels: Tensor,
    relevance: Tensor,
    grid: tuple[int, int] | None,
    target: Any,
    method: Any,
) -> ExplainedImage:
    summed = relevance.sum(0) if grid is None else by_patch(relevance.sum(0), grid)
    # All channels have the value that is shown at their place.
    shown = summed.cpu().expand(1, *relevance.shape)
    return ExplainedImage(
        readout.label,
        readout.number,
        readout.score,
        readout.probability,
        target is None,
        type(method).__name__,
        picture,
        _mean_by_place(shown, places),
        relevance,
        pixels,
        grid,
    )


def _mean_by_place(values: Tensor, places: Places) -> Tensor:
    """Returns the mean of the values from each part of the picture; zero if there are none."""
    size = places.resolution(0)
    counted = [places.maps(each, [size])[0] for each in (values, torch.ones_like(values))]
    # Places have a limited resolution, so a part may have no values even if its neighbours do.
    summed, count = counted
    near_sum, near_count = (F.avg_pool2d(each[None], 3, 1, 1)[0] for each in counted)
    empty = (count == 0) & _within(count.sum(1))[:, None] & _within(count.sum(0))
    summed, count = summed.where(~empty, near_sum), count.where(~empty, near_count)
    return summed / count.where(count > 0, 1.0)


def _within(counts: Tensor) -> Tensor:
    """Returns a mask of the range from the first to the last nonzero count."""
    seen = counts > 0
    return (seen.cumsum(0) > 0) & (seen.flip(0).cumsum(0) > 0).flip(0)
