"""Captured calls in files, as programs of `torch.export`, which only need PyTorch to run."""

import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from captum_transformer.captured.arguments import Given, differing_forms
from captum_transformer.captured.graph import Recorded, as_module
from captum_transformer.captured.onnx import save_as_onnx
from captum_transformer.captured.settings import as_recorded
from captum_transformer.errors import CaptureMismatchError, InvalidTargetError

_NOTES = "captum_transformer.json"
# The version of the files' format; files of other versions are refused.
_VERSION = 2


class Served(nn.Module):
    """A captured call with the weights that it reads, as tensors only.

    If the relevance isn't known to be right, because the library would compute it differently for
    these inputs or refuse them, all of it is NaN.

    Args:
        recorded: the graph.
        state: the weights.
        given: an example of a call.
        keeps: whether to keep the checks of the last call.

    Attributes:
        checks: for each check 1 if the last call has passed it, else 0, if they are kept.
    """

    checks: Tensor

    def __init__(
        self,
        recorded: Recorded,
        state: Mapping[str, tuple[str, Tensor]],
        given: Given,
        *,
        keeps: bool,
    ) -> None:
        super().__init__()
        self.model = as_module(recorded, state, given.example())
        self._conditions, self._keeps = bool(recorded.checks), keeps and bool(recorded.checks)
        if self._keeps:
            device = given.key[3][0].device
            # Not one byte: old versions of PyTorch load a buffer into the memory of a `bytes` and
            # write there, and Python has only one `bytes` of each byte for the whole process.
            passed = torch.ones(len(recorded.checks), dtype=torch.int64, device=device)
            self.register_buffer("checks", passed)
        self._structure = recorded.structure
        self._targets = [s.size for s in given.key[3][given.inputs : given.targets]]

    def forward(self, inputs: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the relevance of the target's score.

        Args:
            inputs: as the method takes them.
            target: a tensor of indices for the samples, ``(samples,)`` or, of several dimensions,
                ``(samples, dimensions)``; nested as the targets were; None if there was none.
            args: further arguments of the model.
            kwargs: the same by name.
        """
        given = zip(_tensors_in(target), self._targets, strict=True)
        targets = [tensor.reshape(size) for tensor, size in given]
        tensors = [*_tensors_in(inputs), *targets, *_tensors_in((args, kwargs))]
        found = list(self.model(*tensors))
        if self._conditions:
            passed = found.pop()
            if self._keeps:
                self.checks.copy_(passed)
            right = passed.all()
            found = [torch.where(right, tensor, torch.nan) for tensor in found]
        return pytree.tree_unflatten(found, self._structure)


def save(
    path: str | os.PathLike[str],
    recorded: Recorded,
    state: Mapping[str, tuple[str, Tensor]],
    given: Given,
    notes: Mapping[str, Any],
) -> None:
    """Writes a captured call to a file, as ONNX if the file's name ends in ``.onnx``."""
    with torch.no_grad():
        args, kwargs = given.as_served(given.example())
        as_onnx = _is_named_onnx(path)
        served = Served(recorded, state, given, keeps=not as_onnx).eval()
        program = torch.export.export(served, args, kwargs)
    if as_onnx:
        save_as_onnx(path, program)
        return
    everything = {"version": _VERSION, "checks": recorded.checks, **notes, **given.notes()}
    torch.export.save(program, path, extra_files={_NOTES: json.dumps(everything)})


class LoadedCapture:
    """A captured call from a file, called like the captured one; see `load_captured`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        _require_saved(path)
        extra = {_NOTES: ""}
        self._program = torch.export.load(path, extra_files=extra)
        self._notes = json.loads(extra[_NOTES])
        if self._notes["version"] != _VERSION:
            raise CaptureMismatchError(
                f"{os.fspath(path)} was written by another version of captum_transformer. "
                "Capture the call again; `torch.export.load` still reads the file."
            )
        self._module = self._program.module()

    def __call__(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Returns the results of the captured method for other inputs and targets.

        The arguments are those of the captured call.

        Raises:
            CaptureMismatchError: if the call is not the one that was captured, or if one of the
                method's checks on values has another result.
            InvalidTargetError: if a target is no index of the model's output.
        """
        several = self._notes["of"] == "attribute_targets"
        args, kwargs = additional_forward_args, additional_forward_kwargs
        given = Given(inputs, target, several, args, kwargs)
        if why := list(differing_forms(given.notes(), self._notes)):
            raise CaptureMismatchError(
                f"This call differs from the captured one: {'; '.join(why)}."
            )
        served, named = given.as_served(given.tensors)
        try:
            with as_recorded(given.devices):
                found = self._module(*served, **named)
        except (IndexError, RuntimeError):
            self._require_within(given)
            raise
        if self._notes["checks"] and all(t.isnan().all() for t in _tensors_in(found)):
            self._require_passed()
        return found

    def _require_within(self, given: Given) -> None:
        """Raises an error if a target is no index of the model's output."""
        for indices in given.tensors[given.inputs : given.targets]:
            sizes = self._notes.get("sizes", {}).get(str(indices.shape[1]))
            for size, chosen in zip(sizes or (), indices.unbind(1), strict=bool(sizes)):
                if bool(((chosen < -size) | (chosen >= size)).any()):
                    raise InvalidTargetError(
                        f"A target does not fit the model's output, of shape {tuple(sizes)} for "
                        f"each sample: an index is from 0 to {size - 1}, or from -1 to {-size} if "
                        "it is for all samples."
                    )

    def _require_passed(self) -> None:
        """Raises an error if the last call has not passed all checks."""
        passed = self._module.get_buffer("checks").tolist()
        checks = zip(self._notes["checks"], passed, strict=True)
        if failed := dict.fromkeys(what for what, has_passed in checks if not has_passed):
            raise CaptureMismatchError(
                "The file doesn't apply to this call. It differs from the captured one in this: "
                f"{'; '.join(failed)}. The method explains it, or says why it can't."
            )


def load_captured(path: str | os.PathLike[str]) -> LoadedCapture:
    """Reads a captured call written by `Captured.save`.

    Neither the method nor the model's code is needed. Without this package the file is read by
    ``torch.export.load(path).module()``, which takes the inputs, a tensor of targets and the
    further arguments.

    Args:
        path: the file.

    Returns:
        A function with the arguments of the captured call.

    Example:
        >>> import tempfile, timm, torch
        >>> from captum_transformer import AttnLRP, load_captured
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
        >>> captured = AttnLRP(model).capture(torch.rand(2, 3, 32, 32), target=3)
        >>> with tempfile.NamedTemporaryFile(suffix=".pt2") as file:
        ...     captured.save(file.name)
        ...     loaded = load_captured(file.name)
        >>> loaded(torch.rand(2, 3, 32, 32), target=[5, 7]).shape
        torch.Size([2, 3, 32, 32])
    """
    return LoadedCapture(path)


def _is_named_onnx(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).lower().endswith(".onnx")


def _require_saved(path: str | os.PathLike[str]) -> None:
    """Raises an error if a file wasn't written by `save`; torch's own errors don't say so."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except zipfile.BadZipFile:
        names = []
    if not any(name.endswith(f"/{_NOTES}") for name in names):
        hint = " ONNX models run in an ONNX runtime." if _is_named_onnx(path) else ""
        raise CaptureMismatchError(
            f"{os.fspath(path)} was not written by `Captured.save`, or is incomplete.{hint}"
        )


def _tensors_in(nested: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]
