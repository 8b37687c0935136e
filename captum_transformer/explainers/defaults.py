"""The default methods, and the reasons for them.

They follow from docs/study.md: the best method depends on whether words or pixels are explained,
and on whether the score is read from one token or from pooled tokens.
"""

from typing import NamedTuple

from captum_transformer.attr.attn_lrp import AttnLRP
from captum_transformer.attr.transformer_attribution import TransformerAttribution
from captum_transformer.attr.transformer_method import TransformerMethod
from captum_transformer.description import Description


class Choice(NamedTuple):
    """A method, and the reason to choose it."""

    method: type[TransformerMethod]
    reason: str


TEXT = Choice(AttnLRP, "its words for and against are the best of a text, or as good")
ONE_TOKEN = Choice(
    TransformerAttribution,
    "the score is read from one token, and its patches point better than values of single pixels",
)
POOLED = Choice(
    TransformerAttribution,
    "the score is read from pooled tokens, and it has what each of them says for the class",
)


def for_images(seen: Description) -> Choice:
    """Returns the method that the study recommends for images.

    Args:
        seen: The description of the model, which shows whether its score is read from pooled
            tokens.
    """
    return POOLED if seen.pooled else ONE_TOKEN
