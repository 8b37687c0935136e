"""Random graphs of tokens, written block by block."""

import random

import torch
from torch import Tensor

from tests.flow.oracle import shares_of
from tests.flow.programs import SUMS, TOKENS, WIDTH, Program, Step


class Blocks:
    """Writes programs, block by block.

    Args:
        chance: source of random numbers.
        learned: number of learned tokens in front of the others.
    """

    def __init__(self, chance: random.Random, learned: int) -> None:
        self.steps: list[Step] = []
        self.chance, self.learned = chance, learned
        self.last, self.tokens = 0, TOKENS
        self.far = 0

    def __call__(self, kind: str, *of: int) -> int:
        self.steps.append(Step(kind, of))
        return len(self.steps)

    def attend(self, x: int) -> int:
        windows = self.tokens % 2 == 0 and self.chance.random() < 0.25
        return self("attend in windows" if windows else "attend", x)

    def add(self, kind: str) -> None:
        """Adds a block of some kind."""
        x, normed = self.last, 0
        if kind not in ("post-norm", "dense", "nested", "without skip"):
            normed = self("norm", x)
        self.last = getattr(self, "_" + kind.replace("-", "_").replace(" ", "_"))(x, normed)

    def _pre_norm(self, x, normed):
        return self("add", x, self.attend(normed))

    def _post_norm(self, x, _):
        return self("norm", self("add", self.attend(x), x))

    def _mlp(self, x, normed):
        return self("add", x, self("mlp", normed))

    def _spelled(self, x, normed):
        x = self(self.chance.choice(list(SUMS)), x, self.attend(normed))
        return self(self.chance.choice(list(SUMS)), x, self("mlp", self("norm", x)))

    def _two_projections(self, x, normed):
        x = self("add", x, self.attend(normed))
        return self("add", self("project", x), self("mlp", x))

    def _two_towers(self, x, normed):
        towers = [normed, normed]
        for place in (0, 1, 0, 1):
            towers[place] = self("add", towers[place], self.attend(towers[place]))
        return self(self.chance.choice(("add", "sum of a stack", "fold")), *towers)

    def _folded(self, x, normed):
        return self("fold", x, self.attend(normed))

    def _parallel(self, x, normed):
        branches = [self.attend(normed), self("mlp", normed)]
        self.chance.shuffle(branches)
        if self.chance.random() < 0.5:
            return self("add", x, self("add", *branches))
        return self("add", self("add", x, branches[0]), branches[1])

    def _side_by_side(self, x, normed):
        terms = [x, *(self.attend(normed) for _ in range(self.chance.choice((2, 3))))]
        self.chance.shuffle(terms)
        while len(terms) > 1:
            one, other = (terms.pop(self.chance.randrange(len(terms))) for _ in range(2))
            terms.append(self("add", one, other))
        return terms[0]

    def _stacked(self, x, normed):
        return self("add", x, self("sum of a stack", self.attend(normed), self.attend(normed)))

    def _stacked_with_skip(self, x, normed):
        return self("sum of a stack", self.attend(normed), x, self("project", normed))

    def _projected_skip(self, x, normed):
        return self("add", self("project", normed), self.attend(normed))

    def _inner_skip(self, x, normed):
        inner = self("project", normed)
        return self("add", x, self("add", inner, self.attend(inner)))

    def _nested(self, x, _):
        inner = self("add", x, self.attend(x))
        return self("add", x, self("add", inner, self.attend(inner)))

    def _dense(self, x, _):
        first = self("add", x, self.attend(x))
        return self("add", self("add", first, self.attend(first)), x)

    def _without_skip(self, x, _):
        return self.attend(x)

    def _two_calls(self, x, normed):
        return self("add", x, self.attend(self.attend(normed)))

    def _gated(self, x, normed):
        return self("add", x, self("gate", self.attend(normed), x))

    def _gate(self, x, normed):
        return self("gate", x, self("add", normed, self.attend(normed)))

    def _highway(self, x, normed):
        attended = self.attend(normed)
        return self("add", self("gate", x, attended), attended)

    def _joined(self, x, normed):
        parts = [x, self.attend(normed)]
        self.chance.shuffle(parts)
        return self("join", *parts)

    def _joined_with_more(self, x, normed):
        attended = self.attend(normed)
        return self("join", self("mlp", x), self("add", x, attended), self.attend(attended))

    def _conformer(self, x, normed):
        half = self("add", x, self("mlp", normed))
        attended = self("add", half, self.attend(self("norm", half)))
        return self("norm", self("add", attended, self("mlp", attended)))

    def _long_skip(self, x, normed):
        far, self.far = self.far, x
        added = self("add", x, self.attend(normed))
        return self("add", added, far) if self.tokens == TOKENS else added

    def _u_shaped(self, x, normed):
        if self.tokens % 2:
            return self._pre_norm(x, normed)
        low = self("merge", normed)
        self.tokens //= 2
        low = self("add", low, self.attend(low))
        self.tokens *= 2
        high = self("repeat", low)
        return self("join", high, x) if self.chance.random() < 0.5 else self("add", x, high)

    def _shrinking(self, x, normed):
        kinds = ["merge", "sum of halves"] * (self.tokens % 2 == 0)
        kinds += ["sum of thirds"] * (self.tokens % 3 == 0)
        if not kinds or self.learned:
            return self._pre_norm(x, normed)
        kind = self.chance.choice(kinds)
        merged = self(kind, x)
        self.tokens = len(shares_of(kind, self.tokens))
        return self("add", merged, self.attend(merged))


KINDS = [
    name.removeprefix("_").replace("_", " ")
    for name, value in vars(Blocks).items()
    if name.startswith("_") and not name.startswith("__") and callable(value)
]


def drawn(seed: int, kinds: list[str] = KINDS, learned: int | None = None) -> Program:
    """A program of two to four blocks."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    learned = chance.choice((0, 0, 2)) if learned is None else learned
    blocks = Blocks(chance, learned)
    for _ in range(chance.choice((2, 3, 4))):
        blocks.add(chance.choice(kinds))
    if not any(step.kind.startswith("attend") for step in blocks.steps):
        blocks.add("pre norm")
    return Program(blocks.steps, learned, chance.choice(("mean", "first")))


def tokens(program: Program) -> Tensor:
    """Two samples for a program to be explained on."""
    count = TOKENS - (0 if program.learned is None else program.learned.shape[1])
    return torch.randn(2, count, WIDTH, dtype=torch.float64)
