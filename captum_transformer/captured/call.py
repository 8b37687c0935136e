"""A call of an attribution method, captured as a graph of tensor operations."""

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import torch

from captum_transformer.captured.archive import save
from captum_transformer.captured.arguments import Given, differing
from captum_transformer.captured.executed import ALONE
from captum_transformer.captured.guarded import Guarded, captured
from captum_transformer.captured.regions import Compiler
from captum_transformer.errors import CaptureMismatchError, InvalidTargetError

# What is captured.
Of = Literal["attribute", "attribute_tokens", "attribute_targets"]
# How many graphs are kept with `recapture`.
_GRAPHS = 8


class Captured:
    """A call of a method as one graph of tensor operations; made by `TransformerMethod.capture`.

    It is called like the method, and its results are the same to the last bit, with one target for
    each sample. The graph reads the model's own parameters and buffers, so it follows training.
    A call that differs from the captured one is refused, and so is any call after a change of the
    model other than in the values of its tensors; with `recapture` it is captured again.

    Example:
        >>> import timm, torch
        >>> from captum_transformer import AttnLRP
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> images = torch.rand(2, 3, 32, 32)
        >>> captured = AttnLRP(model).capture(images, target=3)
        >>> captured(torch.rand(2, 3, 32, 32), target=[5, 7]).shape
        torch.Size([2, 3, 32, 32])
        >>> captured(torch.rand(1, 3, 32, 32), target=5)
        Traceback (most recent call last):
        captum_transformer.errors.CaptureMismatchError: This call differs from the captured one:
        ...
    """

    _advice = "Capture it again, or once with `recapture=True`, which does so automatically."

    def __init__(self, method: Any, of: Of, options: Mapping[str, Any], *, recapture: bool) -> None:
        self._method = method
        self._of = of
        self._options = dict(options)
        self._recapture = recapture
        self._graphs: OrderedDict[Any, Guarded] = OrderedDict()
        self._compiler: Compiler | None = None

    def __call__(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Returns what the method returns, computed by the graph.

        Args:
            inputs: as the method takes them, of the same shapes.
            target: as the method takes it, of the same form: any class, for all samples or each.
            additional_forward_args: as the method takes them, tensors of the same shapes and
                everything else equal.
            additional_forward_kwargs: the same by name.

        Raises:
            CaptureMismatchError: if this is not the call that was captured, and `recapture` is off.
        """
        args, kwargs = additional_forward_args, additional_forward_kwargs
        given = self._given(inputs, target, args, kwargs)
        graph = self._graphs.get(given.key)
        why = self._unlike(given) if graph is None else graph.guard.changed()
        if why is None and graph is not None:
            found = graph.answer(given)
            why = None if found is None else graph.other_branch(found)
            if why is None:
                if found is not None and graph.holds(found):
                    return graph.restored(found)
                if found is None:  # and the method says why
                    return self._call(inputs, target, args, additional_forward_kwargs=kwargs)
                return given.call(self._call, given.tensors, [])
        if not self._recapture:
            raise CaptureMismatchError(
                f"This call differs from the captured one: {why}. {self._advice}"
            )
        return self.add(inputs, target, args, kwargs)

    def add(self, inputs: Any, target: Any, args: Any, kwargs: Any) -> Any:
        """Captures a call.

        Returns:
            The method's result.
        """
        given = self._given(inputs, target, args, kwargs)
        try:
            with ALONE:
                graph, result = captured(self._method, given, self._call)
        except InvalidTargetError:
            self._call(inputs, target, args, additional_forward_kwargs=kwargs)  # says it better
            raise
        if self._compiler is not None:
            graph.compile(self._compiler)
        self._graphs[given.key] = graph
        if len(self._graphs) > _GRAPHS:
            self._graphs.popitem(last=False)
        return result

    def compile(self, mode: str | None = None, **options: Any) -> "Captured":
        """Compiles the graph with Inductor; results are then equal up to rounding.

        Parts of the graph that are equal, as the layers of most models are, are compiled once. Rows
        that nothing reads, such as those of the last layer if a score is read from a class token,
        and rows of zeros are not computed: NaN there no longer makes the result NaN.

        Args:
            mode: as in `torch.compile`: ``"max-autotune"``, or ``"reduce-overhead"``, which uses
                CUDA graphs.
            **options: Inductor's options, as in `torch.compile(..., options=...)`.

        Returns:
            Itself.

        Raises:
            RuntimeError: if Inductor knows no such mode or option.
        """
        inductor = torch._inductor  # noqa: SLF001
        if mode is not None:
            options = {**inductor.list_mode_options(mode), **options}
        self._compiler = lambda graph, tensors: inductor.compile(
            graph, list(tensors), options=options
        )
        for graph in self._graphs.values():
            graph.compile(self._compiler)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the call that was captured last, with the current weights.

        The file is a `torch.export` program: `torch.export.load` reads it without this package
        and without the model's code, `load_captured` with the method's arguments. If one of the
        method's checks on values fails, the program returns NaN, and what `load_captured` returns
        raises an error that names the check.

        A file whose name ends in ``.onnx`` is an ONNX model with the same inputs and outputs. This
        needs onnx and onnxscript, and a model on the CPU.

        Args:
            path: the file, ``.pt2`` by convention, or ``.onnx``.

        Raises:
            CaptureMismatchError: if the model has changed other than in its tensors' values.
            CaptureError: if the model writes into a tensor that shares memory with another.
        """
        *_, graph = self._graphs.values()
        if (why := graph.guard.changed()) is not None:
            raise CaptureMismatchError(f"The model is not the one that was captured: {why}.")
        graph.require_apart()
        notes = {"method": type(self._method).__name__, "of": self._of, "sizes": graph.sizes}
        save(path, graph.recorded, graph.state(), graph.example, notes)

    def __reduce__(self) -> Any:
        raise TypeError(
            "A captured call can't be copied or pickled: its graph belongs to this model. Capture "
            "the call of the copied method, or write it to a file with `save`."
        )

    @property
    def nodes(self) -> int:
        """The number of operations of the graph that was captured last."""
        *_, graph = self._graphs.values()
        return graph.recorded.nodes

    def _given(self, inputs: Any, target: Any, args: Any, kwargs: Any) -> Given:
        return Given(inputs, target, self._of == "attribute_targets", args, kwargs)

    def _call(self, inputs: Any, target: Any, args: Any, **options: Any) -> Any:
        return getattr(self._method, self._of)(inputs, target, args, **options, **self._options)

    def _unlike(self, given: Given) -> str:
        """Describes how a call differs from the one that was captured last."""
        *_, key = self._graphs
        return "; ".join(differing(given, key))
