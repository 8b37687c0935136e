"""Random graphs of tokens, and an oracle: each distinct sequence of attention calls counts once."""

import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

WIDTH, HEADS, TOKENS, CLASSES = 8, 2, 6, 3


class Attention(nn.Module):
    """Attention among all tokens, or within windows of some; keeps its maps."""

    def __init__(self, window: int = 0) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.window = window
        self.maps: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        size = self.window or x.shape[1]
        windows = x.unflatten(1, (-1, size)).flatten(0, 1)
        q, k, v = self.qkv(windows).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * 2).softmax(-1)
        self.maps.append(weights)
        attended = (weights @ v).transpose(1, 2).flatten(2)
        return self.out(attended).unflatten(0, (len(x), -1)).flatten(1, 2)

    def matrix(self, weights: Tensor, samples: int) -> Tensor:
        """Maps as one for all tokens, averaged over heads."""
        windows = weights.mean(1).unflatten(0, (samples, -1))
        return torch.stack([torch.block_diag(*sample) for sample in windows])


SUMS = {
    "add": torch.add,
    "add from zero": lambda x, y: 0 + x + y,
    "add by subtracting": lambda x, y: torch.rsub(-x, y),
    "add a constant": lambda x, y: (x + torch.ones(WIDTH)) + y,
    "add in chunks": lambda x, y: torch.cat([x[:, :1] + y[:, :1], x[:, 1:] + y[:, 1:]], 1),
    "add by lerp": lambda x, y: 2 * torch.lerp(x, y, 0.5),
}


class Step(NamedTuple):
    """A step of a program.

    Attributes:
        kind: what it does.
        of: the values that it works on, by their places in the program.
    """

    kind: str
    of: tuple[int, ...]


class Program(nn.Module):
    """A model that follows a list of steps; its first value are the embedded tokens."""

    def __init__(self, steps: list[Step], learned: int, read: str) -> None:
        super().__init__()
        self.steps, self.read = steps, read
        self.embed, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.learned = nn.Parameter(torch.empty(1, learned, WIDTH)) if learned else None
        self.layers = nn.ModuleList(_layer(step) for step in steps)
        self.double().eval()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.learned is not None:
            x = torch.cat([self.learned.expand(len(x), -1, -1), x], 1)
        values = [x]
        for (kind, of), layer in zip(self.steps, self.layers, strict=True):
            values.append(_run(kind, layer, [values[place] for place in of]))
        last = self.last = values[-1]
        return self.head(last.mean(1) if self.read == "mean" else last[:, 0])


def _layer(step: Step) -> nn.Module:
    layers = {
        "norm": lambda: nn.LayerNorm(WIDTH),
        "project": lambda: nn.Linear(WIDTH, WIDTH),
        "gate": lambda: nn.Linear(WIDTH, WIDTH),
        "mlp": lambda: nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH)
        ),
        "attend": Attention,
        "attend in windows": lambda: Attention(2),
        "join": lambda: nn.Linear(WIDTH * len(step.of), WIDTH),
        "merge": lambda: nn.Linear(2 * WIDTH, WIDTH),
    }
    return layers.get(step.kind, nn.Identity)()


def _run(kind: str, layer: nn.Module, of: list[Tensor]) -> Tensor:
    x = of[0]
    if kind.startswith("add"):
        return SUMS[kind](x, of[1])
    if kind == "fold":
        return torch.cat(of, 1).unflatten(1, (len(of), -1)).sum(1)
    if kind == "sum of a stack":
        return torch.stack(of).sum(0)
    if kind == "gate":
        return x * layer(of[1]).sigmoid()
    if kind == "join":
        return layer(torch.cat(of, -1))
    if kind == "merge":
        return layer(torch.cat([x[:, 0::2], x[:, 1::2]], -1))
    if kind == "repeat":
        return x.repeat_interleave(2, 1)
    if kind == "sum of thirds":
        return x[:, 0::3] + x[:, 1::3] + x[:, 2::3]
    if kind == "sum of halves":
        while x.shape[1] % 2 == 0:
            half = x.shape[1] // 2
            x = x[:, :half] + x[:, half:]
        return x
    return layer(x)


def _made_of(kind: str, tokens: int) -> Tensor:
    """What part of a token each token has that it was made of, ``(tokens, earlier)``."""
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
        # Of each value: where in each source a token's share lies; -1 is the input.
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
        made = _made_of(step.kind, tokens)
        held = {}
        for source in dict.fromkeys(source for some in before for source in some):
            holders = [o for o, some in zip(step.of, before, strict=True) if source in some]
            if step.kind.startswith("add") or step.kind == "gate":
                holders = self._passing(holders)
            placed = [self._held[o][source] for o in holders]
            held[source] = made @ (sum(placed) / len(placed))
        return held

    def _passing(self, holders: list[int]) -> list[int]:
        """A skip around the others stands for them, and so does what holds more than they do."""
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


class Blocks:
    """Writes programs, block by block.

    Args:
        chance: what is drawn from.
        learned: how many learned tokens stand before the others.
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
        self.tokens = len(_made_of(kind, self.tokens))
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
    """What a program is to be explained on."""
    count = TOKENS - (0 if program.learned is None else program.learned.shape[1])
    return torch.randn(2, count, WIDTH, dtype=torch.float64)
