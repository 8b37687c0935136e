"""What is claimed of each method, in closed form for one attention layer of a head per class."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from captum_transformer import (
    GIM,
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LeGrad,
    LibraGrad,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)
from tests.attr.subjects import Method

EXACT = {"rtol": 0.0, "atol": 1e-12}
# Layer-wise relevance propagation divides by sums with an epsilon in them.
STABILISED = {"rtol": 0.0, "atol": 1e-7}


@dataclass(frozen=True)
class Seen:
    """What the asking token, the first one, sees of a sample; rows are ``(tokens,)``.

    Attributes:
        heads: the attention of both heads, ``(2, tokens)``.
        own: the number of the class's head.
        logits: the logits of that head's attention.
        evidence: what it reads of each token.
    """

    heads: Tensor
    own: int
    logits: Tensor
    evidence: Tensor

    @property
    def contributed(self) -> Tensor:
        """By each token's value: these sum up to the score."""
        return self.heads[self.own] * self.evidence

    @property
    def attracted(self) -> Tensor:
        """By each token's attention, to first order: logit times the score's gradient there."""
        attention, score = self.heads[self.own], self.contributed.sum()
        return self.logits * attention * (self.evidence - score)

    @property
    def asking(self) -> Tensor:
        return torch.eye(self.heads.shape[1], dtype=torch.float64)[0]


def of_own_head(row: Tensor) -> Tensor:
    """The mean over two heads of which the other one has nothing for the class."""
    return row.relu() / 2


def attention_relevance(seen: Seen) -> Tensor:
    """Half of the relevance that arrives, one; the other half is the values'."""
    return seen.contributed / seen.contributed.sum() / 2


def chefer_2021_cvpr(seen: Seen) -> Tensor:
    """Eq. 13: E_h (∇A R)⁺; the gradient at the attention is what the head reads."""
    return of_own_head(seen.evidence * attention_relevance(seen))


def grad_cam(seen: Seen) -> Tensor:
    cam = of_own_head(seen.evidence.mean() * seen.heads[seen.own])
    return (cam - cam.min()) / (cam.max() - cam.min())


def legrad(seen: Seen) -> Tensor:
    """The gradient at the attention is what the head reads, whether or not it attends to it."""
    positive = seen.evidence.clamp(min=0)
    return (positive - positive.min()) / (positive.max() - positive.min())


def layer_wise_relevance(seen: Seen) -> Tensor:
    """A V in halves, Q Kᵀ again in halves.

    What no key has told apart is lost there, and what is negative in the linear map of the values.
    """
    attention = attention_relevance(seen)
    values = torch.where(seen.evidence > 0, attention, 0.0)
    keys = torch.where(seen.logits == 0, 0.0, attention / 2)
    return values + keys + seen.asking * keys.sum()


def attn_lrp(seen: Seen) -> Tensor:
    """A V in halves, the softmax by its gradient, Q Kᵀ again in halves."""
    keys = seen.attracted / 4
    return seen.contributed / 2 + keys + seen.asking * keys.sum()


def gim(seen: Seen) -> Tensor:
    """The same, but for the softmax's gradient, which is that at a temperature of two."""
    soft = (seen.logits / 2).softmax(0)
    keys = seen.logits * soft * (seen.evidence - (soft * seen.evidence).sum()) / 4
    return seen.contributed / 2 + keys + seen.asking * keys.sum()


def gradient_times_input(seen: Seen) -> Tensor:
    return seen.contributed + seen.attracted + seen.asking * seen.attracted.sum()


@dataclass(frozen=True)
class Claims:
    """What is claimed of a method.

    Attributes:
        method: makes it.
        row: the relevance of each token in closed form.
        of_ignored: what a token gets that is looked at but says nothing: ``"nothing"``, ``"most"``,
            or ``"against"``, for the attention that it takes from the one that does.
        of_opposed: what a token gets that is looked at and speaks against the class: ``"nothing"``,
            ``"against"``, or ``"for"``, as if it spoke for it.
        of_source: where evidence is carried on, the source has ``"all"`` the relevance; the
            ``"peak"``; ``"less"`` than who carries it but more than any other; or ``"none"``, no
            more than tokens without a part in it.
        class_specific: whether it tells classes apart.
        total: what all relevance sums up to: ``"score"``, ``"one"`` or None.
        tolerance: how exact it is.
    """

    method: Method
    row: Callable[[Seen], Tensor]
    of_ignored: str
    of_opposed: str
    of_source: str
    class_specific: bool = True
    total: str | None = None
    tolerance: dict[str, float] | None = None


CLAIMS = {
    # Chefer, Gur & Wolf, CVPR 2021: class-specific, and deeper than the last layer. Where gradient
    # and relevance are both negative their product isn't: what is against the class counts for it.
    "TransformerAttribution": Claims(
        TransformerAttribution, chefer_2021_cvpr, "nothing", "for", "less", tolerance=STABILISED
    ),
    "TransformerAttribution, normalised": Claims(
        partial(TransformerAttribution, normalize_rows=True),
        lambda seen: chefer_2021_cvpr(seen) / (1 + chefer_2021_cvpr(seen).sum()),
        "nothing",
        "for",
        "less",
        tolerance=STABILISED,
    ),
    # Its baseline: conserved, but a quarter goes to the query each time.
    "full LRP": Claims(
        partial(TransformerAttribution, propagate_to_input=True),
        layer_wise_relevance,
        "nothing",
        "against",
        "peak",
        total="one",
        tolerance=STABILISED,
    ),
    # Chefer, Gur & Wolf, ICCV 2021, eq. 5-6.
    "GenericAttentionRelevance": Claims(
        GenericAttentionRelevance,
        lambda seen: of_own_head(seen.contributed),
        "nothing",
        "nothing",
        "less",
    ),
    # Voita et al., ACL 2019: relevance of the heads, no further down than one layer.
    "PartialLRP": Claims(
        PartialLRP,
        lambda seen: of_own_head(attention_relevance(seen)),
        "nothing",
        "nothing",
        "none",
        tolerance=STABILISED,
    ),
    # Selvaraju et al., ICCV 2017, on attention: one weight per head can't tell tokens apart.
    "AttentionGradCam": Claims(AttentionGradCam, grad_cam, "most", "for", "none"),
    # Bousselham et al., ICCV 2025: what would be read if it were attended to, layer by layer. What
    # one layer prepares for another changes no score of its own.
    "LeGrad": Claims(LeGrad, legrad, "nothing", "nothing", "none"),
    # Abnar & Zuidema, ACL 2020: follows attention through the layers, whatever it reads.
    "AttentionRollout": Claims(
        AttentionRollout,
        lambda seen: seen.heads.mean(0) / 2,
        "most",
        "for",
        "less",
        class_specific=False,
    ),
    "RawAttention": Claims(
        RawAttention, lambda seen: seen.heads.mean(0), "most", "for", "none", class_specific=False
    ),
    # Ali et al., ICML 2022: attention held constant, the values have it all.
    "ConservativeLRP": Claims(
        ConservativeLRP, lambda seen: seen.contributed, "nothing", "against", "all", total="score"
    ),
    # Mehri et al., CVPR 2025: with activations and gates as well, of which there are none here.
    "LibraGrad": Claims(
        LibraGrad, lambda seen: seen.contributed, "nothing", "against", "all", total="score"
    ),
    # What they start from: not conserved, since queries and keys count twice.
    "gradient x input": Claims(
        partial(ConservativeLRP, attention_rule=False, layer_norm_rule=False),
        gradient_times_input,
        "against",
        "against",
        "peak",
    ),
    # Achtibat et al., ICML 2024: through queries and keys as well; the softmax's bias absorbs.
    "AttnLRP": Claims(AttnLRP, attn_lrp, "against", "against", "peak"),
    # Edin et al., 2025: AttnLRP's shares, the softmax softened.
    "GIM": Claims(GIM, gim, "against", "against", "peak"),
}
