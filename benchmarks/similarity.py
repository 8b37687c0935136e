"""Measures how well pairs of words are found that make sentences similar, where they are known.

python -m benchmarks.similarity

Two sentences are about the same if they name the same animal, in whatever words: an encoder learns
that on the spot. So of all pairs of words one decides, that of the two names.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_transformer import AttnLRP, BiLRP, ConservativeLRP, LibraGrad

ANIMALS, NAMES, FILLERS, LENGTH = 4, 3, 17, 7
WIDTH = 32
WORDS = ANIMALS * NAMES

Maps = Callable[["Encoder", Tensor, Tensor], Tensor]


class Encoder(nn.Module):
    """The mean over a small BERT's tokens."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=1 + WORDS + FILLERS,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * WIDTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = transformers.BertModel(config, add_pooling_layer=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.bert(ids).last_hidden_state.mean(1)


def sentences(about: Tensor) -> tuple[Tensor, Tensor]:
    """Sentences that name an animal, and where: ``(samples, tokens)`` and ``(samples,)``."""
    ids = torch.randint(1 + WORDS, 1 + WORDS + FILLERS, (len(about), LENGTH))
    places = torch.randint(LENGTH, about.shape)
    names = 1 + NAMES * about + torch.randint(NAMES, about.shape)
    return ids.scatter(1, places[:, None], names[:, None]), places


def trained(seed: int, steps: int) -> Encoder:
    torch.manual_seed(seed)
    encoder = Encoder()
    optimizer = torch.optim.AdamW(encoder.parameters(), 3e-3)
    for _ in range(steps):
        about = torch.randint(ANIMALS, (64,))
        one, other = (F.normalize(encoder(sentences(about)[0])) for _ in range(2))
        same = (about[:, None] == about).float()
        F.mse_loss(one @ other.T, same).backward()
        optimizer.step()
        optimizer.zero_grad()
    return encoder.eval()


def by_bilrp(encoder: Encoder, one: Tensor, other: Tensor, **options: Any) -> Tensor:
    return BiLRP(encoder, normalize=True, **options).attribute(one, other)


def by_cosine(encoder: Encoder, one: Tensor, other: Tensor, *, embedded: bool) -> Tensor:
    """What is looked at without any explanation: how similar the tokens themselves are."""
    with torch.no_grad():
        read: Callable[[Tensor], Tensor] = (
            encoder.bert.get_input_embeddings()
            if embedded
            else lambda ids: encoder.bert(ids).last_hidden_state
        )
        left, right = (F.normalize(read(ids), dim=-1) for ids in (one, other))
        return left @ right.mT


METHODS: dict[str, Maps] = {
    "BiLRP": by_bilrp,
    **{f"BiLRP, rank={rank} of {WIDTH}": partial(by_bilrp, rank=rank) for rank in (8, 16)},
    "BiLRP of AttnLRP": partial(by_bilrp, method=AttnLRP),
    "BiLRP of LibraGrad": partial(by_bilrp, method=LibraGrad),
    "BiLRP of gradient x input": partial(
        by_bilrp, method=partial(ConservativeLRP, attention_rule=False, layer_norm_rule=False)
    ),
    "cosine of last hidden states": partial(by_cosine, embedded=False),
    "cosine of word embeddings": partial(by_cosine, embedded=True),
}


def measured(encoder: Encoder, pairs: int) -> dict[str, tuple[float, float]]:
    """By method how often the pair of names has most, and its share of what is positive."""
    about = torch.randint(ANIMALS, (pairs,))
    (one, here), (other, there) = (sentences(about) for _ in range(2))
    planted = (LENGTH * here + there)[:, None]
    found = {}
    for name, explain in METHODS.items():
        relevance = explain(encoder, one, other).flatten(1)
        positive = relevance.clamp(min=0)
        share = positive.gather(1, planted)[:, 0] / positive.sum(1)
        most = (relevance.argmax(1) == planted[:, 0]).float()
        found[name] = 100 * float(most.mean()), 100 * float(share.mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200, help="sentences of each model")
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--seeds", type=int, default=3, help="how many models")
    args = parser.parse_args()

    found = [measured(trained(seed, args.steps), args.pairs) for seed in range(args.seeds)]
    print("| pairs of words | the right pair has most, % | its share of positive relevance, % |")
    print("|---|--:|--:|")
    for name in METHODS:
        columns = zip(*(of_seed[name] for of_seed in found), strict=True)
        print(f"| {name} | {' | '.join(map(ranged, columns))} |")


def ranged(values: Sequence[float]) -> str:
    low, high = (f"{value:.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
