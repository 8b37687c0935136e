"""Where the relevance of a score goes: how much reaches the inputs, and what takes the rest."""

import enum


class Reason(enum.Enum):
    """Why relevance reaches no input."""

    BIAS = "biases"
    ADDED = "added constants"  # position embeddings, masks, labels
    JOINED = "joined constants"  # learned tokens such as a class token, prompts
    FILLED = "masked or padded entries"
    CONSTANT = "other constants"  # what a signal is compared with, learned values
    EPSILON = "vanishing denominators"
    ELSEWHERE = "what no input is in"

    __hash__ = object.__hash__
