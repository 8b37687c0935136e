"""Sentences whose verb agrees with a subject some nouns away: "the keys to the cabinet are"."""

import random
from typing import NamedTuple

import torch
from torch import Tensor

END, START, COMMA, THE, THAT = range(5)
_NOUNS = "key cabinet door letter boy girl teacher dog cat car book tree house king bird friend"
_MAIN = "is/are was/were has/have runs/run falls/fall waits/wait looks/look stays/stay"
_INNER = "likes/like sees/see knows/know wants/want"
NOUNS = [(noun, f"{noun}s") for noun in _NOUNS.split()]
MAIN, INNER = ([tuple(pair.split("/")) for pair in pairs.split()] for pairs in (_MAIN, _INNER))
ADJECTIVES = "old red small tall new dark".split()
PREPOSITIONS = "to near behind under with for".split()
# Words that have a number are in pairs: the singular, then the plural.
WORDS = [
    *("<end>", "<start>", ",", "the", "that"),
    *(word for pair in (*NOUNS, *MAIN, *INNER) for word in pair),
    *ADJECTIVES,
    *PREPOSITIONS,
]
SIZE = len(WORDS)
_NOUN = THAT + 1
_VERB = _NOUN + 2 * len(NOUNS)
_INNER_VERB = _VERB + 2 * len(MAIN)
_ADJECTIVE = _INNER_VERB + 2 * len(INNER)
_PREPOSITION = _ADJECTIVE + len(ADJECTIVES)
LENGTH = 20
FARTHEST = 9  # from the subject to the last word before its verb


class Sentences(NamedTuple):
    """Sentences, and what their verbs agree with.

    Attributes:
        ids: ``(B, LENGTH)``: a start token, the words, and end tokens.
        subject: ``(B,)``, the position of the noun that the verb agrees with.
        last: ``(B,)``, the position in front of the verb, where it is predicted.
        right: ``(B,)``, the verb.
        wrong: ``(B,)``, the same verb in the other number.
    """

    ids: Tensor
    subject: Tensor
    last: Tensor
    right: Tensor
    wrong: Tensor

    def prompts(self) -> Tensor:
        """The sentences without their verbs and what is behind."""
        behind = torch.arange(LENGTH) > self.last[:, None]
        return self.ids.masked_fill(behind, END)

    def swapped(self) -> Tensor:
        """The prompts with the subject in the other number."""
        prompts, rows = self.prompts(), torch.arange(len(self.ids))
        prompts[rows, self.subject] = other_number(prompts[rows, self.subject])
        return prompts

    def visible(self) -> Tensor:
        """Which tokens stand in front of the verb, ``(B, LENGTH)``."""
        return torch.arange(LENGTH) <= self.last[:, None]

    def from_subject(self) -> tuple[Tensor, Tensor]:
        """The positions from the subject to the last, and which of them a sentence has.

        Both are ``(B, 1 + FARTHEST)``; in place of those that it does not have is its last.
        """
        places = self.subject[:, None] + torch.arange(1 + FARTHEST)
        return places.minimum(self.last[:, None]), places <= self.last[:, None]

    def nouns(self) -> Tensor:
        """Which of them are nouns."""
        return (self.prompts() >= _NOUN) & (self.prompts() < _VERB)


def other_number(words: Tensor) -> Tensor:
    """The plurals of singulars and the singulars of plurals."""
    return _NOUN + ((words - _NOUN) ^ 1)


def draw(count: int, seed: int, plain: float = 0.0) -> Sentences:
    """Sentences at random, with at least one other noun between the subject and its verb.

    Args:
        count: how many.
        seed: of the generator.
        plain: how many of them have nothing between, as most of what is said; easy to learn from.
    """
    generator = random.Random(seed)
    ids, rows = torch.full((count, LENGTH), END), []
    for row in range(count):
        words, subject = _sentence(generator, plain)
        ids[row, : len(words)] = torch.tensor(words)
        rows.append(
            (subject, len(words) - 2, words[-1], int(other_number(torch.tensor(words[-1]))))
        )
    return Sentences(ids, *torch.tensor(rows).T)


def _sentence(random: random.Random, plain: float) -> tuple[list[int], int]:
    """A sentence's words, the last of them its verb, and where its subject is."""
    words = [START]
    if random.random() < 0.5:
        words += [*_beside(random), COMMA]
    subject, plural = _noun(random)
    words += subject
    place = len(words) - 1
    kinds = random.choice([(_beside,), (_clause,), (_beside, _beside), (_beside, _clause)])
    for further in () if random.random() < plain else kinds:
        words += further(random)
    return [*words, _VERB + 2 * random.randrange(len(MAIN)) + plural], place


def _noun(random: random.Random) -> tuple[list[int], int]:
    """A noun with its article, and its number."""
    plural = random.randrange(2)
    adjective = [_ADJECTIVE + random.randrange(len(ADJECTIVES))] if random.random() < 0.3 else []
    return [THE, *adjective, _NOUN + 2 * random.randrange(len(NOUNS)) + plural], plural


def _beside(random: random.Random) -> list[int]:
    """As in "near the door"."""
    return [_PREPOSITION + random.randrange(len(PREPOSITIONS)), *_noun(random)[0]]


def _clause(random: random.Random) -> list[int]:
    """As in "that the girls like"."""
    noun, plural = _noun(random)
    return [THAT, *noun, _INNER_VERB + 2 * random.randrange(len(INNER)) + plural]
