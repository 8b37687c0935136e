"""Is this sentence positive or negative, by a decoder that is read from its last token?"""

from pathlib import Path

from benchmarks.study.models import LastToken
from benchmarks.study.subject import Subject
from benchmarks.study.tasks.sentiment import subject_of, train, vocabulary

NAME, SAMPLES, SEEDS = "sentiment-last-token", 150, 3
EPOCHS = 2


def subject(
    data: Path, models: Path, samples: int, epochs: int | None = None, seed: int = 0
) -> Subject:
    """The same sentences, and the same questions, as those of the encoder."""
    words = vocabulary(data)
    path = models / f"{NAME}-{seed}.pt"
    fit = train(data, path, words, lambda: LastToken(len(words)), epochs or EPOCHS, seed)
    kind = "Llama, 3 layers, read from the last token"
    return subject_of(NAME, kind, fit, data, words, samples, seed)
