"""The methods with the interface of the CAMs of pytorch-grad-cam."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_transformer.attr.transformer_attribution import TransformerAttribution
from captum_transformer.calling.isolation import explaining, modules_of
from captum_transformer.calling.target import main_output
from captum_transformer.description import describe
from captum_transformer.errors import AmbiguousOutputError, InvalidTargetError
from captum_transformer.visualization.patches import by_patch

__all__ = ["TransformerCAM"]

# pytorch-grad-cam's `aug_smooth`: the images as they are and mirrored, darker and brighter.
_FACTORS = (0.9, 1.0, 1.1)


class TransformerCAM:
    """Maps of a Transformer as pytorch-grad-cam returns them.

    Replaces ``GradCAM(model, target_layers, reshape_transform)``: all layers are
    explained, and the grid of patches is known, so neither is passed. Maps have the same form: the
    positive part of the relevance of each patch, divided by the maximum of its sample, for
    ``show_cam_on_image``. The model is left unchanged.

    Args:
        model: the model, or a function that runs one, with a score for each class.
        method: creates the method from a forward function: a class of this package, or for example
            ``lambda forward: AttnLRP(forward, gamma=0.05)``.

    Raises:
        TypeError: if layers are passed.

    Example:
        >>> import timm, torch
        >>> from captum_transformer.adapters.grad_cam import TransformerCAM
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, depth=2)
        >>> with TransformerCAM(model) as cam:
        ...     maps = cam(torch.rand(2, 3, 32, 32), targets=[lambda scores: scores[3]] * 2)
        >>> maps.shape, float(maps.max())
        ((2, 32, 32), 1.0)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        method: Callable[[Callable[..., Any]], Any] = TransformerAttribution,
    ) -> None:
        if not callable(method):
            raise TypeError(
                f"method is a {type(method).__name__}: a class of this package is needed, such as "
                "AttnLRP. Target layers are not passed, since all layers are explained."
            )
        self.model = model
        self.method = method

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[Callable[[Tensor], Tensor]] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Explains one target of each sample.

        Args:
            input_tensor: the images as the model takes them, ``(samples, channels, H, W)``.
            targets: for each sample a function that computes the explained score from its scores
                ``(classes,)``, such as pytorch-grad-cam's ``ClassifierOutputTarget(281)``; None for
                the class with the highest score.
            aug_smooth: return the mean of the maps of six versions of each image: as it is and
                mirrored, with its values times 0.9, 1 and 1.1. Without targets, all are explained
                for the class that is predicted for the image as it is.
            eigen_smooth: must be False. It is the main component of the channels of one layer, and
                these maps are of all layers.

        Returns:
            A map for each sample, ``(samples, H, W)``, from zero to one.

        Raises:
            InvalidTargetError: if there is not one target for each sample.
            AmbiguousOutputError: if the model returns no scores of classes.
            ValueError: if `eigen_smooth` is set.
        """
        if eigen_smooth:
            raise ValueError(
                "eigen_smooth takes the main component of the channels of one layer. The maps of "
                "TransformerCAM are of all layers and have no channels: use aug_smooth, or a CAM "
                "of pytorch-grad-cam."
            )
        if targets is not None and len(targets) != len(input_tensor):
            raise InvalidTargetError(
                f"There are {len(input_tensor)} samples and {len(targets)} targets: give one for "
                "each."
            )

        if not aug_smooth:
            return self._maps(input_tensor, targets)
        if targets is None:
            with explaining(modules_of(self.model), [input_tensor]), torch.no_grad():
                predicted = _scores(self.model(input_tensor)).argmax(1).tolist()
            targets = [itemgetter(number) for number in predicted]
        maps = [self._maps(input_tensor * factor, targets) for factor in _FACTORS]
        mirrored = [self._maps((input_tensor * factor).flip(3), targets) for factor in _FACTORS]
        maps += [each[:, :, ::-1] for each in mirrored]
        smoothed: np.ndarray[Any, np.dtype[np.float32]] = np.mean(maps, axis=0)
        return smoothed

    def _maps(
        self, images: Tensor, targets: Sequence[Callable[[Tensor], Tensor]] | None
    ) -> "np.ndarray[Any, np.dtype[np.float32]]":
        def read(images: Tensor) -> Tensor:
            scores = _scores(self.model(images))
            if targets is None:
                return scores.gather(1, scores.argmax(1, keepdim=True))[:, 0]
            return torch.stack([of(each) for of, each in zip(targets, scores, strict=True)])

        relevance = self.method(read).attribute(images)
        grid = describe(read, {"images": images}).grids.get("images")
        maps = [each if grid is None else by_patch(each, grid) for each in relevance.sum(1)]
        positive = torch.stack(maps).float().clamp(min=0)
        largest = positive.amax((1, 2), keepdim=True)
        scaled: np.ndarray[Any, np.dtype[np.float32]] = (
            (positive / largest.where(largest > 0, 1.0)).cpu().numpy()
        )
        return scaled

    def __enter__(self) -> "TransformerCAM":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to do: the model is unchanged."""


def _scores(output: Any) -> Tensor:
    scores = main_output(output)
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise AmbiguousOutputError(
            f"The model must return one score for each class, (samples, classes), got {given}."
        )
    return scores
