"""Is this review positive or negative, and what did people find decisive?"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.study.data.texts import Vocabulary, read_reviews
from benchmarks.study.models import LONGEST, device, parameters, text_encoder
from benchmarks.study.store import state_of
from benchmarks.study.subject import Subject, evenly
from benchmarks.study.tasks import sentiment
from benchmarks.study.tasks.sentiment import Labelled, text_accuracy, together, with_gaps
from benchmarks.study.texts import Texts
from benchmarks.study.training import Trained, trained

NAME, SAMPLES, SEEDS = "reviews", 60, 3
EPOCHS = 4
WINDOW = 256


def train(
    data: Path, models: Path, words: Vocabulary, seed: int, *, epochs: int | None = None
) -> Trained:
    """Goes on from a model of sentences; sees a part of a review at a time."""
    beginning = sentiment.train_encoder(data, models, words, seed, epochs=epochs).model.state_dict()

    def build() -> nn.Module:
        model = text_encoder(len(words))
        model.load_state_dict(beginning)
        return model

    def loader() -> DataLoader[Labelled]:
        texts = [(words.encode(r.words, LONGEST), r.label) for r in read_reviews(data, "train")]
        return DataLoader(texts, 16, shuffle=True, collate_fn=together)  # type: ignore[arg-type]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        ids, mask, labels = batch
        ids, mask, places = windows(with_gaps(ids), mask)
        scores = model(input_ids=ids, attention_mask=mask, position_ids=places).logits
        return F.cross_entropy(scores, labels)

    def measure(model: nn.Module) -> dict[str, float]:
        texts = [(words.encode(r.words, LONGEST), r.label) for r in read_reviews(data, "val")]
        return {"accuracy": text_accuracy(model, texts)}

    return trained(
        models / f"{NAME}-{seed}.pt", build, loader, loss, measure,
        epochs=epochs or EPOCHS, learning_rate=5e-4, seed=seed,
    )  # fmt: skip


def windows(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A part of each text, at its place in the text, behind the class token."""
    behind = (mask.sum(1) - WINDOW).clamp(min=1)
    first = 1 + (torch.rand(len(ids), device=ids.device) * behind).long()
    places = first[:, None] + torch.arange(WINDOW - 1, device=ids.device)
    places = F.pad(places, (1, 0)).clamp(max=ids.shape[1] - 1)
    return ids.gather(1, places), mask.gather(1, places), places


def subject(
    data: Path, models: Path, samples: int, epochs: int | None = None, seed: int = 0
) -> Subject:
    """All held-out reviews count, and the label is explained: people marked reasons for that."""
    words = sentiment.vocabulary(data)
    model, held_out, seconds = train(data, models, words, seed, epochs=epochs)
    split = read_reviews(data, "val")
    # The negative ones come first in the file.
    reviews = [split[i] for i in evenly(len(split), samples, seed)]
    encoded = [words.encode(review.words, LONGEST) for review in reviews]
    special = [(ids == Vocabulary.FIRST) | (ids == Vocabulary.LAST) for ids in encoded]
    labels = torch.tensor([review.label for review in reviews])
    texts = Texts(model, encoded, special, {"label": labels}, Vocabulary.UNKNOWN, device(), batch=8)
    rationale = torch.zeros_like(texts.ids, dtype=torch.bool)
    for row, review in zip(rationale, reviews, strict=True):
        marked = torch.tensor(review.rationale)[: LONGEST - 2]
        row[1 : 1 + len(marked)] = marked
    share = (rationale.sum() / texts.mask.sum()).item()
    return Subject(
        NAME,
        state_of(model, texts.ids),
        {
            "model": f"BERT, 4 layers, {parameters(model):,} parameters, words as tokens, at most "
            f"{LONGEST} of them; goes on from the model of sentences",
            "held-out accuracy": f"{held_out['accuracy']:.1%} of {len(split)} reviews",
            "training": f"{seconds:.0f} s",
            "samples": f"{len(reviews)} held-out reviews of {texts.mask.sum(1).float().mean():.0f} "
            "words on average, whatever the model says of them",
            "rationale": f"{share:.1%} of the words",
        },
        texts.methods(),
        {"rationales": lambda maps: texts.rationales(maps["label"], rationale)},
        seed=seed,
    )
