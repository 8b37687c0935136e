"""How relevant the values inside a model are, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_callbacks.classes import class_scores
from lightning_callbacks.samples import Samples


def layer_relevance(
    module: nn.Module,
    layers: Sequence[str],
    samples: Samples,
    pairs: Sequence[tuple[int, int]],
    *,
    single: bool = False,
) -> dict[str, Tensor]:
    """Gradient times activation of the outputs of some submodules, from one pass.

    Where the rest of the model is linear in a layer's output, its values sum to the class's score.

    Args:
        module: The model.
        layers: The names of the submodules, as in ``module.named_modules()``.
        samples: The samples, on the model's device.
        pairs: Sample numbers and class ids.
        single: The model's output has no dimension for classes.

    Returns:
        All values by layer, flat, float32 on the CPU. A layer that is called several times in a
        pass has the values of all its calls.

    Raises:
        ValueError: If a layer doesn't exist, or the output doesn't depend on it.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
        >>> samples = Samples((torch.ones(1, 2),), None)
        >>> layer_relevance(model, ["0"], samples, [(0, 1)])["0"].shape
        torch.Size([2])
    """
    chosen = samples.select([row for row, _ in pairs])
    for values in chosen.inputs:
        # So that there is a gradient, too, where the first layers are frozen.
        values.requires_grad_(values.is_floating_point())
    known = dict(module.named_modules())
    if missing := [layer for layer in layers if layer not in known]:
        raise ValueError(f"The module has no submodules named {missing}. Mend `layers`.")
    outputs: list[tuple[str, Tensor]] = []

    def keep(layer: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) else output
            if isinstance(first, Tensor) and first.requires_grad:
                outputs.append((layer, first))

        return hook

    handles = [known[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        scores = class_scores(chosen.run(module))
    finally:
        for handle in handles:
            handle.remove()
    if not single:
        scores = scores[range(len(pairs)), [class_id for _, class_id in pairs]]
    if unseen := set(layers) - {layer for layer, _ in outputs}:
        raise ValueError(
            f"The submodules {sorted(unseen)} have returned no tensor with a gradient. Mend "
            "`layers`: name submodules that run for each sample and whose output is a tensor."
        )
    gradients = torch.autograd.grad(scores.sum(), [output for _, output in outputs])
    relevance: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for (layer, output), gradient in zip(outputs, gradients, strict=True):
        relevance[layer].append((output * gradient).detach().float().flatten().cpu())
    return {layer: torch.cat(parts) for layer, parts in relevance.items()}
