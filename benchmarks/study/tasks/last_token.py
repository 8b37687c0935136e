"""Is this sentence positive or negative, by a decoder that is read from its last token?"""

from pathlib import Path

from benchmarks.study.models import LastToken
from benchmarks.study.subject import Subject
from benchmarks.study.tasks.sentiment import subject_of, train, vocabulary

NAME, SAMPLES = "sentiment-last-token", 150
EPOCHS = 2


def subject(data: Path, models: Path, samples: int, epochs: int | None = None) -> Subject:
    """The same sentences, and the same questions, as those of the encoder."""
    words = vocabulary(data)
    fit = train(data, models / f"{NAME}.pt", words, lambda: LastToken(len(words)), epochs or EPOCHS)
    return subject_of(NAME, "Llama, 3 layers, read from the last token", fit, data, words, samples)
