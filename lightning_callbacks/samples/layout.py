"""The order of an input's channels, rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_callbacks.samples.batch import Samples
from lightning_callbacks.shared.flavors import MisconfigurationException

_CANONICAL = "CHTW"


@dataclass(frozen=True)
class Layout:
    """Arranges an input with any order of dimensions as an image with channels first.

    The frames of a video are placed side by side.

    Attributes:
        letters: A letter for each dimension of a sample: C channels, H rows, W columns, T frames.

    Raises:
        MisconfigurationException: If a letter is unknown or occurs twice, or H or W is missing.

    Example:
        >>> import torch
        >>> video = torch.rand(2, 8, 3, 16, 20)
        >>> Layout("TCHW").arrange(video).shape
        torch.Size([2, 3, 16, 160])
        >>> torch.equal(Layout("TCHW").restore(Layout("TCHW").arrange(video), video), video)
        True
    """

    letters: str

    def __post_init__(self) -> None:
        letters = self.letters
        if (
            type(letters) is not str
            or len(set(letters)) < len(letters)
            or not set("HW") <= set(letters) <= set(_CANONICAL)
        ):
            raise MisconfigurationException(
                "layout names the dimensions of one sample in their order, C for channels, H for "
                f'rows, W for columns and T for frames, such as "HWC" or "TCHW", got {letters!r}.'
            )

    def arrange(self, values: Tensor) -> Tensor:
        """Brings a batch into the order of an image.

        Args:
            values: ``(B, ...)`` with a dimension for each letter.

        Returns:
            ``(B, C, H, W)``, with the columns of all frames one after the other, and with one
            channel if there is no C.

        Raises:
            ValueError: If the number of dimensions differs from the number of letters.
        """
        if values.dim() != len(self.letters) + 1:
            raise ValueError(
                f"The layout {self.letters!r} doesn't fit an input of the shape "
                f"{tuple(values.shape[1:])} for each sample: it names {len(self.letters)} "
                "dimensions. Correct layout=."
            )
        values = values.permute(0, *(self.letters.index(c) + 1 for c in self._there()))
        for number, letter in enumerate(_CANONICAL, start=1):
            if letter not in self.letters:
                values = values.unsqueeze(number)
        return values.flatten(3, 4)

    def restore(self, arranged: Tensor, like: Tensor) -> Tensor:
        """Brings a batch back into its own order.

        Args:
            arranged: The batch returned by `arrange`, or other values in this order.
            like: The batch passed to `arrange`.

        Returns:
            The same values in the order of `like`.
        """
        there = self._there()
        sizes = [like.shape[self.letters.index(letter) + 1] for letter in there]
        values = arranged.reshape(len(arranged), *sizes)
        return values.permute(0, *(there.index(letter) + 1 for letter in self.letters))

    def _there(self) -> str:
        return "".join(letter for letter in _CANONICAL if letter in self.letters)


@dataclass(frozen=True)
class Layouts:
    """The layouts of several inputs.

    Attributes:
        letters: The letters of all inputs, or of some inputs by name; others are not rearranged.

    Raises:
        MisconfigurationException: If the letters of an input are invalid, see `Layout`.
    """

    letters: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        found = self.letters
        for letters in found.values() if isinstance(found, Mapping) else [found]:
            if letters is not None:
                Layout(letters)

    def of(self, samples: Samples) -> list[Layout | None]:
        """Returns the layouts of some samples' inputs.

        Args:
            samples: The samples.

        Returns:
            A layout per input, or None for an input without one.
        """
        found = self.letters
        each = (
            found.get(name) if isinstance(found, Mapping) else found
            for name in samples.input_names()
        )
        return [None if letters is None else Layout(letters) for letters in each]

    def arranged_maps(self, maps: Sequence[Tensor], samples: Samples) -> tuple[Tensor, ...]:
        """Arranges the maps of one sample.

        Args:
            maps: A map for each input in its own order, without the batch dimension.
            samples: The samples that this sample belongs to.

        Returns:
            The maps, arranged as images.
        """
        layouts = self.of(samples)
        return tuple(
            values if layout is None else layout.arrange(values[None])[0]
            for layout, values in zip(layouts, maps, strict=True)
        )

    def arranged(self, samples: Samples) -> tuple[Samples, Callable[[Samples], Samples]]:
        """Arranges samples.

        Args:
            samples: The samples.

        Returns:
            The samples with their inputs arranged as images, and a function that restores the order
            of such samples.
        """
        layouts = self.of(samples)
        if not any(layouts):
            return samples, lambda arranged: arranged
        inputs = samples.inputs

        def restored(arranged: Samples) -> Samples:
            back = (
                values if layout is None else layout.restore(values, like)
                for layout, values, like in zip(layouts, arranged.inputs, inputs, strict=True)
            )
            return replace(arranged, inputs=tuple(back))

        shown = (
            values if layout is None else layout.arrange(values)
            for layout, values in zip(layouts, inputs, strict=True)
        )
        return replace(samples, inputs=tuple(shown)), restored
