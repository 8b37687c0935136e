# %% [markdown]
# # 7 A rule or a method of your own
#
# A method is little code here, for what it stands on is done: the trace finds attention in any
# model, and something is carried backward along the tape. This notebook writes a method that weighs
# attention in its own way, and one with a rule of its own, and checks both against their formulas.
# [Concepts](../docs/concepts.md) says what a tape and a token flow are.
#
# A formula holds for a model with random weights, too, so none is trained. For a pretrained one put
# `timm.create_model("vit_base_patch16_224", pretrained=True).eval()` in its place.

# %%
from collections.abc import Sequence
from typing import Any

import timm
import torch
from captum.attr import NoiseTunnel
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    GenericAttentionRelevance,
    TransformerAttribution,
    TransformerMethod,
)
from captum_transformer.attr.attention_flow_method import Question
from captum_transformer.attr.rollout_method import RolloutMethod
from captum_transformer.attr.transformer_method import seed
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules import flow, relevance
from captum_transformer.rules.flow.maps import MapBlock
from captum_transformer.rules.propagate import propagate, transposed
from captum_transformer.rules.streams.update import RolloutUpdate
from captum_transformer.rules.table import Entry
from captum_transformer.trace import AttentionCall, Operation, TracedForward, Value
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import in_full, ratio

torch.manual_seed(0)
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3,
    num_classes=5,
).double().eval()  # fmt: skip
images = torch.rand(2, 3, 32, 32, dtype=torch.float64)

# %% [markdown]
# ## A method: attention that knows the size of the values
#
# A token that is attended to but has a value near zero hands on nothing. *Attention is not only a
# weight* ([Kobayashi et al., 2020](https://arxiv.org/abs/2004.10102)) therefore looks at
# $\|A_{ij} v_j\|$. Rolled out over the layers that is a
# [`RolloutMethod`](../docs/reference/extending.md) with another map:
# for a block of queries, the probabilities `(..., rows, keys)` times the norms of the values.


# %%
class ValueNormRollout(RolloutMethod):
    """Rollout of attention times the norm of what it attends to: $E_h[A_{ij} |v_j|]$."""

    _class_specific = False  # a target may be left out

    def _maps(self, question: Question, calls: Sequence[AttentionCall]) -> MapBlock:  # noqa: ARG002
        norms = {call: call.values().norm(dim=-1)[..., None, :] for call in calls}
        return lambda call, rows: call.probabilities(rows) * norms[call]

    def _update_rule(self) -> RolloutUpdate:
        return RolloutUpdate(normalize_rows=self.normalize_rows)


method = ValueNormRollout(model, normalize_rows=True)
patches = method.attribute_tokens(images)
print(patches.shape, method.attribute(images).shape)

# %% [markdown]
# Batches, masks, windows, several towers and the way to the pixels come with it. Is it right? The
# formula written out, with matrices taken from the model by hand:

# %%
attended = []


def write_down(block: nn.Module, inputs: tuple[Tensor]) -> None:
    """The map of one block of a timm ViT, from its queries, keys and values."""
    attention = block.attn
    tokens = block.norm1(inputs[0])
    samples, count, _ = tokens.shape
    qkv = attention.qkv(tokens).view(samples, count, 3, attention.num_heads, -1)
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
    probabilities = (queries @ keys.transpose(-1, -2) * attention.scale).softmax(-1)
    attended.append((probabilities * values.norm(dim=-1)[:, :, None]).mean(1))


hooks = [block.register_forward_pre_hook(write_down) for block in model.blocks]
with torch.no_grad():
    model(images)
for hook in hooks:
    hook.remove()

rollout = torch.eye(17, dtype=torch.float64)
for attention in attended:
    step = torch.eye(17, dtype=torch.float64) + attention
    rollout = step / step.sum(-1, keepdim=True) @ rollout
expected = rollout[:, 0, 1:]  # the row of the class token, without its own entry
torch.testing.assert_close(patches, expected)
print(f"largest difference: {(patches - expected).abs().max():.1e}")

# %% [markdown]
# And it is a Captum method, so Captum's tools take it:

# %%
smooth = NoiseTunnel(method).attribute(images, nt_samples=4, stdevs=0.05)
print(smooth.shape)

# %% [markdown]
# ## A rule: how relevance goes through linear layers
#
# `TransformerAttribution(model, propagate_to_input=True)` follows the alpha-beta rule there. The
# epsilon rule is $R_i = x_i \sum_j w_{ji} R_j / z_j$, with the output $z$ and a little something
# against division by zero. A rule gets an operation of the tape and what arrived at its outputs,
# and returns what goes on to each operand that the inputs reach. The rules of a pass are a table by
# kind of operation; with one entry changed it is another method.


# %%
def epsilon_rule(operation: Operation, incoming: list[Tensor | None]) -> list[Tensor | None]:
    """LRP-epsilon on linear layers (Bach et al., 2015); what the bias has is dropped."""
    if len(operation.traced()) != 1 or incoming[0] is None:
        return relevance.TABLE(operation, incoming)  # products of two signals, attention
    ((signal, _),) = operation.traced()
    x = in_full(signal)
    with torch.no_grad():
        (z,) = operation.replay([x])
    (share,) = transposed(operation, [x], [ratio(incoming[0], z)])
    return [None if share is None else x * share]


RULES = relevance.TABLE | {Kind.PRODUCT: Entry(epsilon_rule, keeps=True)}


class EpsilonLRP(TransformerMethod):
    """Layer-wise relevance propagation down to the inputs, with the epsilon rule."""

    # The kinds of operation whose operands the rules want to see; others aren't kept in memory.
    _keep = flow.KEEP | RULES.keep

    def _relevance(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        forward.require_attention()
        selected, value = forward.select(target)
        return propagate(forward.tape, seed(selected, value), RULES, wanted)


maps = EpsilonLRP(model).attribute(images, target=3)
print(maps.shape, EpsilonLRP(model).attribute_tokens(images, target=3).shape)

# %% [markdown]
# Is it right? One linear layer behind attention is enough to see what the rule hands on, and to
# compare it with the formula:


# %%
class Head(nn.Module):
    """Attention, for there must be some, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.attention(tokens, tokens, tokens)[0].mean(1))


head = Head().double().eval()
tokens = torch.randn(1, 4, 8, dtype=torch.float64)
arrived: list[Tensor] = []


def listening(operation: Operation, incoming: list[Tensor | None]) -> list[Tensor | None]:
    """The rule, and a look at what it hands on from the last linear layer."""
    passed = epsilon_rule(operation, incoming)
    if not arrived and passed[0] is not None:
        arrived.append(passed[0])
    return passed


LISTENING = RULES | {Kind.PRODUCT: Entry(listening, keeps=True)}


class Listening(EpsilonLRP):
    def _relevance(
        self, forward: TracedForward, target: Any, wanted: Sequence[Value]
    ) -> dict[Value, Tensor]:
        selected, value = forward.select(target)
        return propagate(forward.tape, seed(selected, value), LISTENING, wanted)


Listening(head).attribute(tokens, target=2)
with torch.no_grad():
    signal = head.attention(tokens, tokens, tokens)[0].mean(1)
    weights, bias = head.linear.weight[2], head.linear.bias[2]
    score = signal @ weights + bias
torch.testing.assert_close(arrived[0], signal * weights / score)
print(f"{arrived[0].sum():.4f} goes on to the signal, the bias keeps {(bias / score).item():.4f}")

# %% [markdown]
# ## An operation that has no rule
#
# What isn't known is refused rather than guessed. A model that uses a rare function:


# %%
class Rare(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        tokens = model.forward_features(images)
        return model.head(torch.xlogy(tokens, 2.0)[:, 0])


try:
    GenericAttentionRelevance(Rare()).attribute(images, target=3)
except UnsupportedOperationError as error:
    print(error)

# %% [markdown]
# `xlogy(x, 2.0)` is `x * log(2.0)`: it maps each entry by itself, as `gelu` does. With a line
# `xlogy(input other)` under `Kind.ENTRYWISE` in `captum_transformer/trace/catalogue.py` all passes
# treat it as they treat the others of its kind.
# [Contributing](../CONTRIBUTING.md#add-a-rule) says the
# rest: where rules of other kinds are, and which tests a rule and a method go through.
#
# For comparison, the four methods of this page on one image, as shares of their positive relevance:

# %%
for method in (AttentionRollout, ValueNormRollout, TransformerAttribution, EpsilonLRP):
    values = method(model).attribute_tokens(images[:1], target=3)[0].clamp(min=0)
    shares = (values / values.sum()).mul(100).round().int().tolist()
    print(f"{method.__name__:<24}{shares}")
