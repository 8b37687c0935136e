"""Small attention models whose parts are drawn."""

import math
import random
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from tests.attr.notations import SIZES, Named, Notation

OPTIONS: dict[str, list[Any]] = {
    "heads": ["h", "", "gh"],
    "cross": [False, True],
    "norm": ["layer", "rms", ""],
    "post": [False, True],
    "mask": ["", "causal", "padding"],
    "position": ["", "bias", "relative", "rotary"],
    "sink": ["", "logit", "key"],
    "gate": ["", "output", "heads", "softmax of heads", "mixed heads", "each query"],
    "window": [False, True],
    "ffn": ["", "silu", "glu", "experts", "top"],
    "read": ["first", "mean", "pooled"],
    "blocks": [1, 2],
    "qk norm": [False, True],
}


class Drawn:
    """A model whose parts are drawn from a seed, in some notation.

    Args:
        seed: of the parts and the weights.
        notation: the seed of the notation, or None for the plain one.
        plain: draws that are plain nevertheless.
        options: parts that are given.
    """

    def __init__(
        self,
        seed: int,
        notation: int | None = None,
        plain: frozenset[str] = frozenset(),
        **options: Any,
    ) -> None:
        chance = random.Random(seed)
        self.options = {
            name: chance.choice([*([ways[0]] * (len(ways) - 1)), *ways[1:]])
            for name, ways in OPTIONS.items()
        }
        self.options.update(options)
        self.seed, self.notation, self.plain = seed, notation, plain
        self.weights: dict[str, nn.Parameter] = {}

    def weight(self, name: str, letters: str) -> Named:
        if name not in self.weights:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
            size = [SIZES[c] for c in letters]
            scale = 1 if len(size) < 2 else 1.2 * size[-1] ** -0.5
            drawn = torch.randn(size, generator=generator, dtype=torch.float64) * scale
            self.weights[name] = nn.Parameter(drawn)
        return Named(self.weights[name], letters)

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.n = Notation(self.notation, self.plain)
        o = self.options
        tokens = Named(x, "bne")
        tokens = self.add(tokens, self.layer("embed", tokens, "e", "e"))
        others = None if y is None else Named(y, "bne")
        for block in range(o["blocks"]):
            at = f"block {block} "
            tokens = self.block(at + "self", tokens, None)
            if others is not None:
                tokens = self.block(at + "cross", tokens, others)
            if o["ffn"]:
                tokens = self.residual(at + "ffn", tokens, self.ffn)
        return self.read(tokens).to("bc")

    def add(self, x: Named, y: Named) -> Named:
        return self.n.aligned("add", x, y)

    def layer(self, name: str, x: Named, e: str, into: str) -> Named:
        """A linear layer of the features."""
        w, b = self.weight(name + " w", into + e), self.weight(name + " b", into)
        if len(into) == 1:
            x = self.n.moved(x, x.letters.replace(e, "") + e)
            tensor = self.n.linear(x.tensor, w.tensor, b.tensor)
            return Named(tensor, x.letters[:-1] + into)
        if not into:
            return self.n.applied(x, w, x.letters.replace(e, ""))
        x = self.n.moved(x, x.letters.replace(e, "") + e)
        tensor = self.n.linear(x.tensor, w.tensor.reshape(-1, SIZES[e]), b.tensor.reshape(-1))
        return self.n.unflatten(Named(tensor, x.letters[:-1] + "z"), "z", into)

    def norm(self, name: str, x: Named) -> Named:
        kind = self.options["norm"]
        gain, bias = (self.weight(f"{name} {part}", "e").tensor for part in ("gain", "bias"))
        if not kind:
            return x
        x = self.n.moved(x, x.letters.replace("e", "") + "e")
        if kind == "rms":
            return x.by_entry(lambda t: self.n.rms_norm(t, gain))
        return x.by_entry(lambda t: self.n.layer_norm(t, gain, bias))

    def residual(self, name: str, x: Named, part: Any) -> Named:
        if self.options["post"]:
            return self.norm(name, self.add(x, part(name, x)))
        return self.add(x, part(name, self.norm(name, x)))

    def block(self, name: str, x: Named, others: Named | None) -> Named:
        if self.options["window"] and others is None:
            x = self.n.unflatten(x, "n", "wn")
        x = self.residual(name, x, lambda at, t: self.attention(at, t, others or t))
        return self.n.flatten(x, "wn", "n") if "w" in x.letters else x

    def attention(self, name: str, x: Named, others: Named) -> Named:
        n, o = self.n, self.options
        heads = {"g shared": "gh"}.get(o["heads"], o["heads"])
        own = {"g shared": "g"}.get(o["heads"], heads)
        q, k, v = self.projected(name, x, others, heads, own)
        batch = "bw" if "w" in x.letters else "b"
        size = x.tensor.shape[x.dim("n")], others.tensor.shape[others.dim("n")]
        if o["qk norm"]:
            q, k = (self.n.aligned("multiply", t, self.inverse(t)) for t in (q, k))
        if o["position"] == "rotary":
            q, k = self.rotated(q, "n"), self.rotated(k, "m")
        if o["sink"] == "key":
            k, v = (self.joined(name + s, t, "m", own) for s, t in (("sk", k), ("sv", v)))
            size = size[0], size[1] + 1
        scaled = n.choice("scaled", ("scores", "queries", "keys"))
        asking = q
        if scaled == "queries":
            q = q.by_entry(lambda t: n.scale(t, 0.8))
        if scaled == "keys":
            k = k.by_entry(lambda t: n.scale(t, 0.8))
        alone = not (o["position"] in ("bias", "relative") or o["sink"] == "logit" or o["gate"])
        if alone and own == heads and n.choice("fused", (False, True)):
            made = self.fused(q, k, v, batch + heads, 0.8 if scaled == "scores" else 1.0)
            return self.joined_heads(name, made, batch, heads)
        scores = n.contract(q, k, batch + heads + "nm")
        if scaled == "scores":
            scores = scores.by_entry(lambda t: n.scale(t, 0.8))
        if o["position"] == "relative":
            relative = self.weight(name + " relative", "nmd").tensor[: size[0]]
            relative = relative.repeat(1, 2, 1)[:, : size[1]]
            relative = n.applied(asking, Named(relative, "nmd"), batch + heads + "nm")
            scores = self.add(scores, relative)
        if o["position"] == "bias":
            bias = self.weight(name + " term", heads + "nm").tensor[..., : size[0], :]
            bias = torch.cat([bias, bias], -1)[..., : size[1]]
            scores = n.aligned("shift", scores, Named(bias, heads + "nm"))
        hidden = self.hidden(*size)
        if hidden is not None:
            scores = n.aligned("mask", scores, hidden)
        if o["sink"] == "logit":
            count = scores.tensor.shape[scores.dim("m")]
            scores = self.joined(name + " sink", scores, "m", heads)
            p = n.along(scores, "m", "softmax")
            p = Named(p.tensor.narrow(p.dim("m"), 0, count), p.letters)
        else:
            p = n.along(scores, "m", "softmax")
        p = self.gated_weights(name, p, x, heads)
        made = n.contract(p, v, batch + "n" + heads + "d")
        if o["gate"] == "output":
            gate = self.layer(name + " gate", x, "e", heads + "d")
            made = n.aligned("gate", made, gate)
        if o["gate"] == "heads" and heads:
            gate = self.layer(name + " gate", x, "e", heads)
            made = n.aligned("gate", made, gate)
        return self.joined_heads(name, made, batch, heads)

    def projected(
        self, name: str, x: Named, others: Named, heads: str, own: str
    ) -> tuple[Named, Named, Named]:
        """Queries, keys and values, perhaps of one layer."""
        parts = [(name + " q", heads + "d"), (name + " k", own + "d"), (name + " v", own + "d")]
        if x is not others or not self.n.choice("projected", (False, True)):
            made = [self.layer(at, x if at[-1] == "q" else others, "e", to) for at, to in parts]
        else:
            x = self.n.moved(x, x.letters.replace("e", "") + "e")
            w = torch.cat(
                [self.weight(at + " w", to + "e").tensor.flatten(0, -2) for at, to in parts]
            )
            b = torch.cat([self.weight(at + " b", to).tensor.flatten() for at, to in parts])
            sizes = [math.prod(SIZES[c] for c in to) for _, to in parts]
            split = self.n.linear(x.tensor, w, b).split(sizes, -1)
            made = [
                self.n.unflatten(Named(one, x.letters[:-1] + "z"), "z", to)
                for one, (_, to) in zip(split, parts, strict=True)
            ]
        q, k, v = made
        return q, k.renamed("n", "m"), v.renamed("n", "m")

    def fused(self, q: Named, k: Named, v: Named, batch: str, scale: float) -> Named:
        """Attention by a kernel."""
        hidden = self.hidden(q.tensor.shape[q.dim("n")], k.tensor.shape[k.dim("m")])
        mask = None if hidden is None else ~hidden.to(batch + "nm")
        given = q.to(batch + "nd"), k.to(batch + "md"), v.to(batch + "md")
        made = nn.functional.scaled_dot_product_attention(*given, attn_mask=mask, scale=scale)
        return Named(made, batch + "nd")

    def hidden(self, queries: int, keys: int) -> Named | None:
        """What the mask hides."""
        if self.options["mask"] == "padding":
            hidden = torch.zeros(SIZES["b"], keys, dtype=torch.bool)
            hidden[1, 1] = True
            return Named(hidden, "bm")
        causal = torch.ones(queries, keys, dtype=torch.bool).triu(1)
        return Named(causal, "nm") if self.options["mask"] else None

    def joined_heads(self, name: str, made: Named, batch: str, heads: str) -> Named:
        n = self.n
        w = self.weight(name + " out w", "e" + heads + "d").tensor.flatten(1)
        flat = n.flatten(made, heads + "d", "z") if heads else n.moved(made, batch + "nd")
        out = n.linear(flat.tensor, w, self.weight(name + " out b", "e").tensor)
        return Named(out, flat.letters[:-1] + "e")

    def gated_weights(self, name: str, p: Named, x: Named, heads: str) -> Named:
        n, gate = self.n, self.options["gate"]
        if gate == "softmax of heads" and heads == "h":
            g = n.along(self.layer(name + " gate", x, "e", heads), "h", "softmax")
            return n.aligned("multiply", p, g)
        if gate == "mixed heads" and heads == "h":
            mix = Named(self.weight(name + " mix", "hg").tensor, "hz")
            return n.applied(p, mix, p.letters.replace("h", "z")).renamed("z", "h")
        if gate == "each query":
            return n.aligned("gate", p, self.layer(name + " gate", x, "e", ""))
        return p

    def inverse(self, x: Named) -> Named:
        dim = x.dim("d")
        size = (x.tensor.square().sum(dim, keepdim=True) + 0.1).sqrt().reciprocal()
        return Named(size, x.letters)

    def joined(self, name: str, x: Named, along: str, own: str) -> Named:
        """With a learned entry more along a dimension."""
        letters = own + ("d" if "d" in x.letters else "")
        learned = self.weight(name, letters) if letters else Named(torch.ones(()).double(), "")
        more = learned.to(x.letters)
        sizes = [
            1 if c == along else size for c, size in zip(x.letters, x.tensor.shape, strict=True)
        ]
        return Named(torch.cat([x.tensor, more.expand(sizes)], x.dim(along)), x.letters)

    def rotated(self, x: Named, along: str) -> Named:
        x = self.n.moved(x, x.letters.replace("d", "") + "d")
        angle = torch.arange(x.tensor.shape[x.dim(along)], dtype=torch.float64)[:, None]
        angle = (angle * torch.tensor([0.7, 0.3])).repeat(1, 2)
        lies = Named(angle, along + "d").to(x.letters)
        return x.by_entry(lambda t: self.n.rotary(t, lies.cos(), lies.sin()))

    def ffn(self, name: str, x: Named) -> Named:
        n, kind = self.n, self.options["ffn"]
        rest = x.letters.replace("e", "")
        if kind == "silu":
            hidden = self.layer(name + " in", x, "e", "f").by_entry(n.silu)
            return self.layer(name + " out", hidden, "f", "e")
        if kind == "glu":
            a, b = (self.layer(f"{name} {i}", x, "e", "f") for i in "ab")
            return self.layer(name + " out", n.aligned("gate", a, b), "f", "e")
        p = n.along(self.layer(name + " router", x, "e", "x"), "x", "softmax")
        if kind == "top":
            least = p.tensor.topk(2, p.dim("x")).values.amin(p.dim("x"), keepdim=True)
            p = Named(n.choose(p.tensor, p.tensor >= least), p.letters)
        made = n.applied(x, self.weight(name + " in", "xef"), rest + "xf").by_entry(n.silu)
        made = n.applied(made, self.weight(name + " out", "xfe"), rest + "xe")
        return n.contract(p, made, rest + "e")

    def read(self, x: Named) -> Named:
        n, how = self.n, self.options["read"]
        if how in ("first", "mean"):
            x = n.along(x, "n", how)
            read = Named(x.tensor, x.letters.replace("n", "")).to("be")
            w, b = self.weight("head w", "ce").tensor, self.weight("head b", "c").tensor
            return Named(nn.functional.linear(read, w, b), "bc")
        heads = "h" if how == "pooled heads" else ""
        values = self.layer("values", x, "e", heads + "d")
        p = n.along(self.layer("pool", x, "e", heads), "n", "softmax")
        pooled = n.contract(p, values, "b" + heads + "d")
        return n.applied(pooled, self.weight("head", "c" + heads + "d"), "bc")


def inputs(model: Drawn) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(model.seed)
    given = [torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)]
    if model.options["cross"]:
        given.append(torch.randn(2, 5, 6, generator=generator, dtype=torch.float64))
    return tuple(given)
