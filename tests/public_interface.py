"""The public interface, as lines of text; ``python -m tests.public_interface --write`` pins them.

Names, their order, what is given by keyword alone, and defaults: what code of others can depend on.
Annotations are left out, since each version of Python spells them differently.
"""

import difflib
import enum
import inspect
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeGuard, is_typeddict

MODULES = """
captum_transformer
captum_transformer.account
captum_transformer.adapters.grad_cam
captum_transformer.adapters.inseq
captum_transformer.adapters.quantus
captum_transformer.attr.llm
captum_transformer.chat
captum_transformer.description
captum_transformer.errors
captum_transformer.explainers
captum_transformer.extend
captum_transformer.groups
captum_transformer.metrics
captum_transformer.visualization
lightning_callbacks
""".split()
PACKAGES = ("captum_transformer", "lightning_callbacks")
# Their callbacks and modules have hooks: what these get is for the trainer to say.
TRAINERS = ("lightning.", "pytorch_lightning.", "torch.nn.", "transformers.")
PINNED = Path(__file__).with_name("public_interface.txt")
WRITE = "python -m tests.public_interface --write"


def public() -> dict[str, Any]:
    """Everything that is public, by its full name."""
    return {
        f"{module}.{name}": getattr(import_module(module), name)
        for module in MODULES
        for name in import_module(module).__all__
    }


def lines() -> list[str]:
    """The interface, a line for each name."""
    everything = public()
    classes = {id(found): found for found in everything.values() if _is_class(found)}
    written = []
    for name, found in sorted(everything.items()):
        written.append(f"{name}{_signature(found)}")
        if _is_class(found):
            written += sorted(f"{name}.{line}" for line in _members(found, classes))
    return written


def difference(now: list[str]) -> str:
    """What has changed since the interface was pinned, and what to do; empty if nothing has."""
    pinned = PINNED.read_text(encoding="utf-8").splitlines()
    changes = [
        line
        for line in difflib.unified_diff(pinned, now, lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    if not changes:
        return ""
    return "\n".join(
        [
            "The public interface is not the one that is pinned:",
            *changes,
            f"If that is meant, run `{WRITE}` and say it in CHANGELOG.md. What is removed or means",
            "something else needs a warning first: docs/stability.md.",
        ]
    )


def _members(cls: type, everything: dict[int, type]) -> Iterator[str]:
    """What a class has beside what its public bases have, and beside hooks of other libraries."""
    if issubclass(cls, enum.Enum):
        yield from cls.__members__
        return
    if is_typeddict(cls):
        yield from cls.__annotations__
        return
    bases = cls.__mro__[1:]
    public_bases = [base for base in bases if id(base) in everything]
    elsewhere = {other for base in public_bases for other in base.__mro__}
    hooks = {name for base in bases if base.__module__.startswith(TRAINERS) for name in vars(base)}
    for name in dir(cls):
        if (name.startswith("_") and name != "__call__") or name in hooks:
            continue
        home = next(base for base in cls.__mro__ if name in vars(base))
        if home in elsewhere or not home.__module__.startswith(PACKAGES):
            continue
        member = vars(home)[name]
        if isinstance(member, (staticmethod, classmethod)):
            member = member.__func__
        if inspect.isfunction(member):
            yield f"{name}{_signature(member)}"
        elif isinstance(member, (property, cached_property)):
            yield name


def _is_class(found: Any) -> TypeGuard[type]:
    # On Python 3.10, `Callable[[int], str]` says that it is a class.
    return isinstance(found, type) and not isinstance(found, GenericAlias)


def _signature(found: Any) -> str:
    if not inspect.isroutine(found) and not _is_class(found):
        return ""
    if _is_class(found) and (issubclass(found, enum.Enum) or is_typeddict(found)):
        return ""
    if _is_class(found) and issubclass(found, BaseException):
        return f"({', '.join(base.__name__ for base in found.__bases__)})"
    signature = inspect.signature(found)
    plain = [
        each.replace(
            annotation=inspect.Parameter.empty,
            default=each.default if each.default is each.empty else _Default(each.default),
        )
        for each in signature.parameters.values()
    ]
    return str(inspect.Signature(plain))


class _Default:
    """A default as it is written, the same on each machine."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        if isinstance(self._value, enum.Enum):
            return f"{type(self._value).__name__}.{self._value.name}"
        if isinstance(self._value, type) or inspect.isroutine(self._value):
            return self._value.__qualname__
        return repr(self._value)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PINNED.write_text("\n".join(lines()) + "\n", encoding="utf-8", newline="\n")
    else:
        sys.stdout.write(difference(lines()) or "The public interface is the one that is pinned.\n")
