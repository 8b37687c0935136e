"""Calls that are captured once they repeat."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from captum_transformer.captured.call import Captured, Of
from captum_transformer.errors import CaptureMismatchError

# After this many graphs that no longer applied, `refused` is called.
_OFTEN = 3


class Repeated(Captured):
    """Calls of a method that are captured when they are made for the second time.

    The results are the method's, whether a call is captured or not: a first call, a call after a
    change of the model, and a call that can't be captured are computed by the method itself.
    If the model changes again and again, fewer and fewer calls are captured.
    Capturing takes as long as a few calls, so it pays off for calls that are repeated many times.

    Args:
        method: the method.
        of: which of its calls.
        refused: is called with the reason if a call can't be captured.
        options: further arguments of the call.

    Example:
        >>> import timm, torch
        >>> from captum_transformer import AttnLRP
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> repeated = Repeated(AttnLRP(model), "attribute_tokens", print)
        >>> for _ in range(3):
        ...     tokens = repeated(torch.rand(2, 3, 32, 32), target=[3, 5])
        >>> repeated.nodes > 100
        True
    """

    _advice = "Such calls are captured more and more rarely."

    def __init__(
        self,
        method: Any,
        of: Of,
        refused: Callable[[str], None],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(method, of, options or {}, recapture=False)
        self._refused = refused
        # For each form of calls: after how many more one is captured, and how often its graph no
        # longer applied. Each time the wait doubles, for a model that changes from call to call.
        self._wait: dict[Any, float] = {}
        self._lost: dict[Any, int] = {}

    def __call__(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Returns what the method returns.

        Args:
            inputs: as the method takes them.
            target: as the method takes it, with one index for each sample; of one sample in a list.
            additional_forward_args: as the method takes them.
            additional_forward_kwargs: as the method takes them.
        """
        args, kwargs = additional_forward_args, additional_forward_kwargs
        key, why = None, ""
        try:
            key = self._given(inputs, target, args, kwargs).key
            if key in self._graphs:
                return super().__call__(inputs, target, args, additional_forward_kwargs=kwargs)
            if self._wait.get(key) == 0:
                return self.add(inputs, target, args, kwargs)
        except CaptureMismatchError as error:
            self._graphs.pop(key, None)
            self._lost[key] = lost = self._lost.get(key, 0) + 1
            self._wait[key] = 2 ** (lost - 1)
            if lost == _OFTEN:
                self._refused(f"{lost} graphs no longer applied to the next call. {error}")
        except Exception as error:  # which is the method's to raise, if the call is wrong
            why = f"{type(error).__name__}: {error}"
        result = self._call(inputs, target, args, additional_forward_kwargs=kwargs)
        if why:
            self._refused(why)
        self._wait[key] = math.inf if why else self._wait.get(key, 1) - 1
        return result
