"""How a model's own functions change and mask attention scores, as in FlexAttention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.nested import leaves

INSTEAD = (
    "Switch to another implementation of attention (`attn_implementation='sdpa'` or `'eager'` in "
    "Transformers)."
)


class _Read(TorchFunctionMode):
    """Runs a function of single entries, and finds the tensors that it reads from outside.

    Under ``vmap`` an index is a tensor without dimensions, and indexing a tensor with it must not
    read its number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.captured: dict[int, Tensor] = {}
        self._own: dict[int, Tensor] = {}

    def enter(self, arguments: Any) -> None:
        """Marks tensors as not read from outside."""
        self._own |= {id(tensor): tensor for tensor in leaves(Tensor, arguments)}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in leaves(Tensor, (args, kwargs)):
            if id(tensor) not in self._own:
                self.captured[id(tensor)] = tensor
        if func is Tensor.__getitem__:
            tensor, index = args
            places = list(index) if isinstance(index, tuple) else [index]
            if any(isinstance(i, Tensor) for i in places) and all(map(_is_place, places)):
                func = torch.ops.aten.index.Tensor
                places = [torch.as_tensor(i, device=tensor.device) for i in places]
                args = (tensor, places)
        result = func(*args, **kwargs)
        self.enter(result)
        return result


def _is_place(index: Any) -> bool:
    return isinstance(index, Tensor) or (isinstance(index, int) and not isinstance(index, bool))


class Scoring:
    """Changes and masks scores by a model's own functions, for a block of queries at a time.

    Args:
        score_mod: the function of one score and its position.
        mask_mod: the function of a position that says whether the query may attend to the key.

    Attributes:
        by_secant: whether autograd sees the secant from a score of zero instead of the derivative.
    """

    def __init__(self, score_mod: Callable[..., Tensor], mask_mod: Callable[..., Tensor]) -> None:
        self._score_mod, self._mask_mod = score_mod, mask_mod
        self.by_secant = False
        self._versions: list[tuple[Tensor, int]] = []

    def __call__(self, scores: Tensor, rows: slice) -> Tensor:
        """Returns the scores as the model changes them, ``-inf`` where a query may not attend."""
        for tensor, version in self._versions:
            if _version(tensor) != version:
                raise UnsupportedOperationError(
                    "`flex_attention`'s score_mod or mask_mod reads a tensor of shape "
                    f"{tuple(tensor.shape)} that was modified after the call, so its earlier "
                    f"value is unknown. {INSTEAD}"
                )
        changed = self._over_entries(self._score_mod, _Read(), rows, scores)
        if self.by_secant and scores.requires_grad:
            changed = self._along_secant(scores.detach(), changed.detach(), scores, rows)
        allowed = self._over_entries(self._mask_mod, _Read(), rows, scores, of_scores=False)
        return torch.where(allowed, changed, -torch.inf)

    def _along_secant(self, at: Tensor, changed: Tensor, scores: Tensor, rows: slice) -> Tensor:
        """Returns the changed scores, with the slope of the secant from a score of zero."""
        added = changed - self._over_entries(self._score_mod, _Read(), rows, torch.zeros_like(at))
        slope = (added / at).masked_fill(at == 0, 0.0).nan_to_num(0.0)
        return changed + slope * (scores - at)

    def captured(self, shape: tuple[int, ...], device: torch.device) -> list[Tensor]:
        """Returns the outside tensors that ``score_mod`` reads, and watches them for writes."""
        read, row = _Read(), slice(0, 1)
        start = torch.zeros((*shape[:2], 1, shape[3]), device=device)
        self._over_entries(self._score_mod, read, row, start)
        of_scores = list(read.captured.values())
        self._over_entries(self._mask_mod, read, row, start, of_scores=False)
        self._versions = [(tensor, _version(tensor)) for tensor in read.captured.values()]
        return of_scores

    def _over_entries(
        self,
        function: Callable[..., Tensor],
        read: _Read,
        rows: slice,
        scores: Tensor,
        *,
        of_scores: bool = True,
    ) -> Tensor:
        """Runs a function for each sample, head, query (of a block) and key."""

        def entered(*arguments: Tensor) -> Tensor:
            read.enter(arguments)
            with read:
                return function(*arguments)

        samples, heads, queries, keys = scores.shape
        start = rows.start or 0
        ranges = ((samples,), (heads,), (start, start + queries), (keys,))
        places = [torch.arange(*ends, device=scores.device) for ends in ranges]
        run: Callable[..., Tensor] = entered
        for dim in (3, 2, 1, 0):
            dims = tuple(0 if d == dim else None for d in range(4))
            run = torch.vmap(run, in_dims=(0, *dims) if of_scores else dims)
        return run(scores, *places) if of_scores else run(*places)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
