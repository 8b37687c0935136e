"""Is this sentence positive or negative?"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from benchmarks.study.data.texts import NEUTRAL, Tree, Vocabulary, padded, read_reviews, read_trees
from benchmarks.study.models import device, parameters, text_encoder
from benchmarks.study.store import Maps, Measured, state_of
from benchmarks.study.subject import Subject, evenly
from benchmarks.study.texts import SUMMING, Texts, agreement
from benchmarks.study.training import Trained, trained

NAME, SAMPLES, SEEDS = "sentiment", 150, 3
EPOCHS = 3
Labelled = tuple[Tensor, int]
GAPS = 0.1


def vocabulary(data: Path) -> Vocabulary:
    """The words of sentences and reviews, so that one model can go on from the other."""
    sentences = [tree.words for tree in read_trees(data, "train")] * 5  # each word of theirs
    reviews = [review.words for review in read_reviews(data, "train")]
    return Vocabulary([*sentences, *reviews], at_least=5)


def together(batch: list[Labelled]) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = padded([text for text, _ in batch])
    return ids, mask, torch.tensor([label for _, label in batch])


class AlikeInLength(Sampler[list[int]]):
    """Batches of texts of about the same length, in random order: little is spent on padding."""

    def __init__(self, lengths: list[int], size: int) -> None:
        self.lengths, self.size = torch.tensor(lengths, dtype=torch.float), size

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order = (self.lengths + 2 * torch.rand(len(self.lengths))).argsort()
        batches = order.split(self.size)
        return (batches[i].tolist() for i in torch.randperm(len(batches)).tolist())


def with_gaps(ids: Tensor) -> Tensor:
    """Some words unknown, so that the model has seen what stands for a word that was taken away."""
    gone = (torch.rand(ids.shape, device=ids.device) < GAPS) & (ids > Vocabulary.LAST)
    return ids.masked_fill(gone, Vocabulary.UNKNOWN)


def text_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    ids, mask, labels = batch
    ids = with_gaps(ids)
    return F.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, labels)


def text_accuracy(model: nn.Module, texts: list[Labelled]) -> float:
    device = next(model.parameters()).device
    right = 0
    for start in range(0, len(texts), 32):
        ids, mask, labels = together(texts[start : start + 32])
        scores = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        right += int((scores.argmax(1).cpu() == labels).sum())
    return right / len(texts)


def phrases(trees: list[Tree], words: Vocabulary) -> list[Labelled]:
    """All parts of all sentences that are not neutral, each once."""
    labels = {
        tuple(tree.words[first:end]): int(label > NEUTRAL)
        for tree in trees
        for first, end, label in tree.phrases
        if label != NEUTRAL
    }
    return [(words.encode(phrase, 64), label) for phrase, label in labels.items()]


def sentences(trees: list[Tree], words: Vocabulary) -> list[Labelled]:
    return [
        (words.encode(tree.words, 64), int(tree.sentiment > NEUTRAL))
        for tree in trees
        if tree.sentiment != NEUTRAL
    ]


def train(
    data: Path,
    checkpoint: Path,
    words: Vocabulary,
    build: Callable[[], nn.Module],
    epochs: int,
    seed: int,
) -> Trained:
    def loader() -> DataLoader[Labelled]:
        texts = phrases(read_trees(data, "train"), words)
        batches = AlikeInLength([len(text) for text, _ in texts], 128)
        return DataLoader(texts, batch_sampler=batches, collate_fn=together)  # type: ignore[arg-type]

    def measure(model: nn.Module) -> dict[str, float]:
        return {"accuracy": text_accuracy(model, sentences(read_trees(data, "dev"), words))}

    return trained(
        checkpoint,
        build,
        loader,
        text_loss,
        measure,
        epochs=epochs,
        learning_rate=1e-3,
        seed=seed,
    )


def train_encoder(
    data: Path, models: Path, words: Vocabulary, seed: int, *, epochs: int | None = None
) -> Trained:
    """The task's model."""
    path = models / f"{NAME}-{seed}.pt"
    return train(data, path, words, lambda: text_encoder(len(words)), epochs or EPOCHS, seed)


def subject(
    data: Path, models: Path, samples: int, epochs: int | None = None, seed: int = 0
) -> Subject:
    """All held-out sentences count, rightly classified or not, as in ICML 2022."""
    words = vocabulary(data)
    fit = train_encoder(data, models, words, seed, epochs=epochs)
    return subject_of(NAME, "BERT, 4 layers", fit, data, words, samples, seed)


def subject_of(
    name: str,
    kind: str,
    fit: Trained,
    data: Path,
    words: Vocabulary,
    samples: int,
    seed: int,
) -> Subject:
    """What is asked of any classifier of sentences."""
    model, held_out, seconds = fit
    trees = [tree for tree in read_trees(data, "dev") if tree.sentiment != NEUTRAL]
    # Those of a label stand together in the file.
    trees = [trees[i] for i in evenly(len(trees), samples, seed)]
    encoded = [words.encode(tree.words, 64) for tree in trees]
    labels = torch.tensor([int(tree.sentiment > NEUTRAL) for tree in trees])
    special = [(ids == Vocabulary.FIRST) | (ids == Vocabulary.LAST) for ids in encoded]
    texts = Texts(model, encoded, special, {"label": labels}, Vocabulary.UNKNOWN, device())
    # How much each part speaks for the sentence's label.
    signs = (2 * labels - 1).tolist()
    parts = [tree.phrases for tree in trees]
    for_label = [
        torch.tensor([sign * (label - NEUTRAL) for _, _, label in phrases])
        for sign, phrases in zip(signs, parts, strict=True)
    ]

    def of_phrases(maps: Maps) -> Measured:
        means = [
            torch.stack([row[1 + first : 1 + end].mean() for first, end, _ in phrases])
            for row, phrases in zip(maps["label"], parts, strict=True)
        ]
        single = [torch.tensor([end == first + 1 for first, end, _ in p]) for p in parts]
        pairs = list(zip(single, means, for_label, strict=True))
        return Measured(
            {
                "words": agreement([s[w] for w, s, _ in pairs], [t[w] for w, _, t in pairs]),
                "phrases": agreement([s[~w] for w, s, _ in pairs], [t[~w] for w, _, t in pairs]),
            },
            {},
        )

    metrics = {
        "activation": lambda maps: texts.activation(maps["label"], labels),
        "removal": lambda maps: texts.removal(maps["label"], labels),
        "labels": of_phrases,
        "conservation": lambda maps: texts.conservation(maps["label"], "label"),
    }
    return Subject(
        name,
        state_of(model, texts.ids),
        {
            "model": f"{kind}, {parameters(model):,} parameters, words as tokens",
            "held-out accuracy": f"{held_out['accuracy']:.1%} of the 872 sentences of SST-2 (dev)",
            "training": f"{seconds:.0f} s",
            "samples": f"{len(trees)} held-out sentences, whatever the model says of them",
        },
        texts.methods(),
        metrics,
        {"conservation": SUMMING},
        seed,
    )
