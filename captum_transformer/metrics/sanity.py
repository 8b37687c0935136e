"""Whether explanations depend on the model, on the class and on the score as they should."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from captum._utils.progress import progress
from torch import Tensor, nn

from captum_transformer.calling.precision import widened
from captum_transformer.errors import InvalidInputError
from captum_transformer.metrics.maps import rows
from captum_transformer.metrics.randomisation import Order, layers_from_the_top, randomised
from captum_transformer.metrics.rank_correlation import rank_correlation


def model_randomisation(
    model: nn.Module,
    explain: Callable[[nn.Module], Tensor],
    *,
    order: Order = "cascading",
    layers: Sequence[str] | None = None,
    absolute: bool = False,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, Tensor]:
    """How much explanations still agree with those of the model once its layers are randomised.

    An explanation of what the model has learned must change with its weights. If correlations stay
    near one, the map shows the image, as an edge detector does, and not the model. The weights are
    randomised in a copy; neither the model nor the random state is changed. A module that has
    ``reset_parameters`` gets the values that it is initialised with (for norms, ones and zeros);
    the parameters of all others (such as class tokens, position embeddings and the norms of many
    language models) are permuted each by itself, which keeps their distribution.

    Args:
        model: the model.
        explain: explains a fixed set of samples with the model that it is given, such as ``lambda
            m: AttnLRP(m).attribute(images, target=3)``; returns maps, samples first. The target
            should be fixed, too, as randomised models predict other classes.
        order: ``"cascading"`` randomises the layers one after the other from the top down, each in
            addition to those before; ``"independent"`` each one alone, with all others unchanged.
        layers: names of modules in the order in which to randomise them, each with everything in
            it. None: all modules whose own parameters are used, the one used last first.
        absolute: correlate absolute values.
        seed: the seed of the random weights. A layer gets the same weights in either order.
        show_progress: show a progress bar.

    Returns:
        Spearman's rank correlation with the maps of the model itself, ``{layer: (samples,)}`` in
        the order of randomisation, float64. If a map is constant, it is NaN, with a warning.

    Raises:
        InvalidInputError: if a layer doesn't exist or has no parameters, ``explain`` doesn't use
            the model that it is given, or doesn't return maps.

    Reference:
        `Sanity Checks for Saliency Maps <https://arxiv.org/abs/1810.03292>`_.

    Example:
        >>> import timm
        >>> from captum_transformer import AttnLRP
        >>> model = timm.create_model("test_vit", img_size=32, num_classes=10).eval()
        >>> images = torch.rand(4, 3, 32, 32)
        >>> correlations = model_randomisation(
        ...     model,
        ...     lambda m: AttnLRP(m).attribute(images, target=3),
        ...     layers=["head", "blocks.1", "blocks.0", "patch_embed"],
        ... )
        >>> {layer: tuple(of_samples.shape) for layer, of_samples in correlations.items()}
        {'head': (4,), 'blocks.1': (4,), 'blocks.0': (4,), 'patch_embed': (4,)}
    """
    if order not in ("cascading", "independent"):
        raise InvalidInputError(f"`order` must be 'cascading' or 'independent', got {order!r}.")
    used = layers_from_the_top(model, explain)
    chosen = used if layers is None else list(layers)
    models = randomised(model, chosen, order=order, seed=seed, whole=layers is not None)
    maps = explain(copy.deepcopy(model))
    _check_maps(maps, None)
    correlations = {}
    for name, changed in progress(
        models, desc="Randomised layers", total=len(chosen), disable=not show_progress
    ):
        changed_maps = explain(changed)
        _check_maps(changed_maps, maps.shape)
        correlations[name] = _correlation(maps, changed_maps, f"with {name!r} randomised", absolute)
    return correlations


def class_sensitivity(first: Tensor, second: Tensor, *, absolute: bool = False) -> Tensor:
    """How much the maps of two classes agree: one for a method that ignores the class.

    Args:
        first: Maps of one class, samples first: ``(samples, ...)``.
        second: Maps of another class for the same samples.
        absolute: Correlate absolute values.

    Returns:
        Spearman's rank correlation, ``(samples,)``, float64. If a map is constant, it is NaN, with
        a warning.

    Raises:
        InvalidInputError: If the shapes differ.

    Reference:
        `When Explanations Lie: Why Many Modified BP Attributions Fail
        <https://arxiv.org/abs/1912.09818>`_, where it is measured by structural similarity.

    Example:
        >>> import timm
        >>> from captum_transformer import AttentionRollout
        >>> model = timm.create_model("test_vit", img_size=64, num_classes=10).eval()
        >>> images = torch.rand(2, 3, 64, 64)
        >>> class_sensitivity(*AttentionRollout(model).attribute_targets(images, [3, 5])).round()
        tensor([1., 1.], dtype=torch.float64)
    """
    return _correlation(first, second, "of two classes", absolute)


def completeness(
    attributions: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    output: Tensor,
    *,
    baseline_output: Tensor | float = 0.0,
) -> Tensor:
    r"""The relative error of the attributions' sum.

    .. math:: \frac{\big|\sum_i R_i - (f(x) - f(x_0))\big|}{|f(x) - f(x_0)|}

    A complete attribution has an error of zero; one that is zero everywhere has an error of one.

    Args:
        attributions: The result of a method's ``attribute``: maps, samples first.
        output: The explained score of each sample: ``(samples,)``.
        baseline_output: For methods that explain the difference from a baseline, such as
            integrated gradients: the baseline's score, ``(samples,)`` or one for all. The default,
            zero, is for methods that explain the score itself, such as LRP.

    Returns:
        Relative errors, ``(samples,)``, float64. If the score is zero: infinity, or zero where the
        attributions sum up to exactly zero, too.

    Raises:
        InvalidInputError: If there isn't one score for each sample.

    Reference:
        `Axiomatic Attribution for Deep Networks <https://arxiv.org/abs/1703.01365>`_, and
        `LRP's conservation <https://doi.org/10.1371/journal.pone.0130140>`_.

    Example:
        >>> completeness(torch.tensor([[1.0, 2.0], [1.0, -1.0]]), torch.tensor([4.0, 0.0]))
        tensor([0.2500, 0.0000], dtype=torch.float64)
    """
    maps = [attributions] if isinstance(attributions, Tensor) else _parts(attributions)
    if output.dim() != 1 or any(len(each) != len(output) for each in maps):
        raise InvalidInputError(
            f"`output` must hold one score for each of the {len(maps[0])} samples, got shape "
            f"{tuple(output.shape)}. Pick that of the class: logits[range(len(logits)), target]."
        )
    due = widened(output.detach()) - torch.as_tensor(baseline_output).detach()
    total = torch.stack([widened(each.detach()).flatten(1).sum(1) for each in maps]).sum(0)
    missed = (total - due).abs()
    return torch.where(missed == 0, 0.0, missed / due.abs())


def _parts(attributions: tuple[Tensor, ...] | Mapping[str, Tensor]) -> list[Tensor]:
    return list(attributions.values() if isinstance(attributions, Mapping) else attributions)


def _check_maps(maps: Any, shape: torch.Size | None) -> None:
    if not isinstance(maps, Tensor) or maps.dim() < 2 or maps.shape != (shape or maps.shape):
        got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise InvalidInputError(
            "`explain` must return one tensor of maps, samples first, of the same shape for every "
            f"model, got {got}. Concatenate the maps of several inputs: torch.cat([maps.flatten(1) "
            "for maps in ...], 1)."
        )


def _correlation(first: Tensor, second: Tensor, of: str, absolute: bool) -> Tensor:
    first, second = first.detach(), second.detach()
    if absolute:
        first, second = first.abs(), second.abs()
    correlation = rank_correlation(first, second)
    undefined = correlation.isnan()
    if undefined.any():
        warnings.warn(
            f"The maps {of} have no rank correlation for {rows(undefined)}, where one of the two "
            "is constant: NaN. Leave these out of means, and say how many they are.",
            UserWarning,
            stacklevel=3,
        )
    return correlation
