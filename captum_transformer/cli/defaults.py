"""Which method explains where the user names none, and why.

The figures are those of docs/study.md: what a method is good for depends on whether words or pixels
are asked about, and on what the score is read from.
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from captum_transformer import describe
from captum_transformer.errors import ExplanationError

Kind = Literal["text", "image"]


class Choice(NamedTuple):
    """The name of a method, and the reason to choose it."""

    method: str
    reason: str


TEXT = Choice("AttnLRP", "its words for and against are the best of a text, or as good")
ONE_TOKEN = Choice(
    "TransformerAttribution",
    "the score is read from one token, and its patches point better than values of single pixels",
)
POOLED = Choice(
    "TransformerAttribution",
    "the score is read from pooled tokens, and it has what each of them says for the class",
)


def choose(kind: Kind, model: nn.Module, inputs: Tensor) -> Choice:
    """Picks the method that the study supports.

    Args:
        kind: What the model reads, as its processor or tokenizer says.
        model: The model.
        inputs: What it is called with, which shows what its score is read from.

    Returns:
        The choice.
    """
    if kind == "text":
        return TEXT
    try:
        pooled = describe(model, inputs).pooled
    except ExplanationError:
        # Whatever method it is, it will say why the model can't be explained.
        return ONE_TOKEN
    return POOLED if pooled else ONE_TOKEN
