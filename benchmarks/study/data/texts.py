"""Sentences with labelled phrases, and reviews with human rationales."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.study.data.archive import lines, opened

SENTENCES, REVIEWS = "sst_trees", "eraser_movies"
NEUTRAL = 2


class Tree(NamedTuple):
    """A sentence of the Stanford Sentiment Treebank.

    Attributes:
        words: its words.
        phrases: ``(first word, behind the last word, sentiment from 0 to 4)`` of all its parts; the
            first one is the sentence.
    """

    words: list[str]
    phrases: list[tuple[int, int, int]]

    @property
    def sentiment(self) -> int:
        return self.phrases[0][2]

    def word_sentiments(self) -> list[int]:
        """Each word's own label."""
        return [label for first, end, label in sorted(self.phrases) if end == first + 1]


class Review(NamedTuple):
    """A review, whether it is positive, and which of its words people gave as the reason."""

    words: list[str]
    label: int
    rationale: list[bool]


def parse(line: str) -> Tree:
    """Reads ``(3 (2 very) (4 good))``."""
    words: list[str] = []
    phrases: list[tuple[int, int, int]] = []
    opened_at: list[int] = []
    for label, closing, word in re.findall(r"\((\d)|(\))|([^()\s]+)", line):
        if label:
            opened_at.append(len(phrases))
            phrases.append((len(words), -1, int(label)))
        elif closing:
            index = opened_at.pop()
            first, _, sentiment = phrases[index]
            phrases[index] = (first, len(words), sentiment)
        else:
            words.append(word.lower())
    return Tree(words, phrases)


def read_trees(data: Path, split: str) -> list[Tree]:
    """Reads the split ``"train"`` or ``"dev"``."""
    return [parse(line) for line in lines(opened(data, SENTENCES) / f"{split}.txt")]


def read_reviews(data: Path, split: str) -> list[Review]:
    """Reads the split ``"train"`` or ``"val"``."""
    folder = opened(data, REVIEWS)
    reviews = []
    for line in lines(folder / f"{split}.jsonl"):
        entry = json.loads(line)
        words = (folder / "docs" / entry["annotation_id"]).read_text(encoding="utf-8").split()
        rationale = [False] * len(words)
        for evidence in (part for parts in entry["evidences"] for part in parts):
            for index in range(evidence["start_token"], min(evidence["end_token"], len(words))):
                rationale[index] = True
        reviews.append(Review(words, int(entry["classification"] == "POS"), rationale))
    return reviews


class Vocabulary:
    """Numbers for words; with a class token before and an end token behind each text."""

    PAD, UNKNOWN, FIRST, LAST = range(4)

    def __init__(self, texts: Iterable[Sequence[str]], at_least: int) -> None:
        counts = Counter(word for words in texts for word in words)
        kept = sorted(word for word, count in counts.items() if count >= at_least)
        self._ids = {word: index for index, word in enumerate(kept, start=4)}

    def __len__(self) -> int:
        return 4 + len(self._ids)

    def encode(self, words: Sequence[str], length: int) -> Tensor:
        """The ids of a text, at most ``length`` of them."""
        ids = [self._ids.get(word, self.UNKNOWN) for word in words[: length - 2]]
        return torch.tensor([self.FIRST, *ids, self.LAST])


def padded(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A batch of ids and its mask, each ``(samples, longest)``."""
    ids = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    lengths = torch.tensor([len(text) for text in texts])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()
