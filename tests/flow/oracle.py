"""An oracle for the token flow: each distinct sequence of attention calls counts once."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.flow.programs import Attention, Program, Step


def shares_of(kind: str, tokens: int) -> Tensor:
    """The share of each earlier token in the tokens that a step computes, ``(tokens, earlier)``."""
    eye = torch.eye(tokens, dtype=torch.float64)
    if kind == "merge":
        return (eye[0::2] + eye[1::2]) / 2
    if kind == "repeat":
        return eye.repeat_interleave(2, 0)
    if kind == "sum of thirds":
        return (eye[0::3] + eye[1::3] + eye[2::3]) / 3
    if kind == "sum of halves":
        odd = tokens
        while odd % 2 == 0:
            odd //= 2
        return eye.view(-1, odd, tokens).mean(0)
    return eye


class Oracle:
    """Multiplies the maps of each sequence of attention calls, one sequence at a time."""

    def __init__(self, program: Program, x: Tensor) -> None:
        self._program, self._samples = program, len(x)
        eye = torch.eye(x.shape[1], dtype=x.dtype)
        learned = 0 if program.learned is None else program.learned.shape[1]
        # For each value: the share of each token of a source in its tokens; -1 is the input.
        self._held: list[dict[int, Tensor]] = [
            {-1: torch.cat([eye.new_zeros(learned, len(eye)), eye])}
        ]
        self._ancestors: list[set[int]] = [set()]
        for place, step in enumerate(program.steps, 1):
            self._ancestors.append({*step.of}.union(*(self._ancestors[o] for o in step.of)))
            self._held.append(self._after(place, step))

    def _after(self, place: int, step: Step) -> dict[int, Tensor]:
        before = [self._held[o] for o in step.of]
        tokens = len(next(iter(before[0].values())))
        if step.kind.startswith("attend"):
            return {place: torch.eye(tokens, dtype=torch.float64)}
        made = shares_of(step.kind, tokens)
        held = {}
        for source in dict.fromkeys(source for some in before for source in some):
            holders = [o for o, some in zip(step.of, before, strict=True) if source in some]
            if step.kind.startswith("add") or step.kind == "gate":
                holders = self._passing(holders)
            placed = [self._held[o][source] for o in holders]
            held[source] = made @ (sum(placed) / len(placed))
        return held

    def _passing(self, holders: list[int]) -> list[int]:
        """What counts: a skip around the others, or a value that holds all of their sources."""
        skips = [o for o in holders if all(o in self._ancestors[p] for p in holders if p != o)]
        sets = {o: self._held[o].keys() for o in holders}
        wide = [o for o in holders if all(sets[o] > sets[p] for p in holders if p != o)]
        return skips or wide or holders

    def sequences(self, value: int = -1) -> Iterator[tuple[int, ...]]:
        """Each sequence of attention calls that leads from a value to the input, once."""
        for source in self._held[value]:
            if source == -1:
                yield ()
            else:
                (values,) = self._program.steps[source - 1].of
                yield from ((source, *rest) for rest in self.sequences(values))

    def row(self, maps: dict[int, Tensor], *, with_identity: bool) -> Tensor:
        """The row of relevance that the score is read from, ``(samples, tokens)``."""
        total = torch.zeros((), dtype=torch.float64)
        for sequence in self.sequences():
            if not sequence and not with_identity:
                continue
            value, product = len(self._program.steps), None
            for source in (*sequence, -1):
                placed = self._held[value][source].expand(self._samples, -1, -1)
                product = placed if product is None else product @ placed
                if source != -1:
                    product = product @ maps[source]
                    (value,) = self._program.steps[source - 1].of
            total = total + product
        return total.mean(1) if self._program.read == "mean" else total[:, 0]


def expected(program: Program, x: Tensor, target: int, *, with_identity: bool) -> Tensor:
    """The tokens' relevance by ICCV 2021's maps."""
    calls = {
        place: layer
        for place, layer in enumerate(program.layers, 1)
        if isinstance(layer, Attention)
    }
    for layer in calls.values():
        layer.maps.clear()
    score = program(x)[:, target].sum()
    kept = {place: layer.maps.pop() for place, layer in calls.items()}
    gradients = torch.autograd.grad(score, list(kept.values()), allow_unused=True)
    maps = {}
    for (place, weights), gradient in zip(kept.items(), gradients, strict=True):
        if gradient is not None:
            relevant = (weights * gradient).relu().detach()
            maps[place] = calls[place].matrix(relevant, len(x))
    return Oracle(program, x).row(maps, with_identity=with_identity)
