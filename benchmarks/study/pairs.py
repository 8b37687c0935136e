"""What says which pairs of tokens make two inputs similar."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.study.models import MeanOfTokens
from captum_transformer import BiLRP


def by_bilrp(model: MeanOfTokens, one: Tensor, other: Tensor, **options: Any) -> Tensor:
    """The relevance of each pair, ``(B, tokens of one, tokens of the other)``."""
    return BiLRP(model, normalize=True, **options).attribute(one, other)


def by_cosine(model: MeanOfTokens, one: Tensor, other: Tensor, *, embedded: bool) -> Tensor:
    """What is looked at without any explanation: how similar the tokens themselves are."""
    read = model.bert.get_input_embeddings() if embedded else model.states
    with torch.no_grad():
        left, right = (F.normalize(read(ids), dim=-1) for ids in (one, other))
        return left @ right.mT
