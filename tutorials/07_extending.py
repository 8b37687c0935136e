# %% [markdown]
# # 7 A rule or a method of your own
#
# A method needs little code, because the rest exists: the trace finds attention in any model, and
# the passes follow the tape backward. This notebook implements a method with its own weighting of
# attention and one with its own rule, and checks both against their formulas.
# [Concepts](../docs/concepts.md) explains tapes and token flow. Everything you need is in
# [`captum_transformer.extend`](../docs/reference/extending.md).
#
# Formulas also hold for random weights, so no model is trained. For a pretrained one, use
# `timm.create_model("vit_base_patch16_224", pretrained=True).eval()` instead.

# %%
from collections.abc import Sequence

import timm
import torch
from captum.attr import NoiseTunnel
from torch import Tensor, nn

from captum_transformer import (
    AttentionRollout,
    GenericAttentionRelevance,
    TransformerAttribution,
    extend,
)
from captum_transformer.errors import UnsupportedOperationError

torch.manual_seed(0)
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3,
    num_classes=5,
).double().eval()  # fmt: skip
images = torch.rand(2, 3, 32, 32, dtype=torch.float64)

# %% [markdown]
# ## A method: attention that knows the size of the values
#
# A token that is attended to but has a value near zero contributes nothing. *Attention is not
# only a weight* ([Kobayashi et al., 2020](https://arxiv.org/abs/2004.10102)) therefore looks at
# $\|A_{ij} v_j\|$. As a rollout over the layers, this is a `MapMethod`: for a block of queries,
# its map is the probabilities `(..., rows, keys)` times the norms of the values.


# %%
class ValueNormRollout(extend.MapMethod):
    """Rollout of attention times the norm of what it attends to: $E_h[A_{ij} |v_j|]$."""

    class_specific = False  # a target may be left out

    def maps(
        self,
        explained: extend.Selection,  # noqa: ARG002
        calls: Sequence[extend.AttentionCall],
    ) -> extend.MapBlock:
        norms = {call: call.values().norm(dim=-1)[..., None, :] for call in calls}
        return lambda call, rows: call.probabilities(rows) * norms[call]


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
# epsilon rule is $R_i = x_i \sum_j w_{ji} R_j / z_j$, with the output $z$ and a small number
# against division by zero. A rule gets an operation and the relevance of its output. It returns
# the relevance of each operand that depends on the inputs, and what it keeps, with the reason:
# relevance that is lost without a reason is an error. A rule applies to a *kind* of operation:
# `F.linear`, `@` and `torch.einsum` are all products. All other kinds keep their rules.


# %%
def epsilon_rule(operation: extend.Operation, relevance: Tensor) -> list[Tensor | None]:
    """LRP-epsilon (Bach et al., 2015); products of two signals keep the z-rule, half to each."""
    if len(operation.traced()) > 1:
        return extend.z_rule(operation, relevance, degree=2)
    ((signal, _),) = operation.traced()
    x = extend.in_full(signal)
    with torch.no_grad():
        (z,) = operation.replay([x])
    (slope,) = extend.transposed(operation, [x], [extend.ratio(relevance, z)])
    share = torch.zeros_like(x) if slope is None else x * slope
    return extend.Shares([share], {extend.Reason.BIAS: relevance.sum() - share.sum()})


def epsilon_lrp(model: nn.Module) -> extend.RelevanceMethod:
    return extend.RelevanceMethod(model, {extend.Kind.PRODUCT: epsilon_rule})


maps = epsilon_lrp(model).attribute(images, target=3)
print(maps.shape, epsilon_lrp(model).attribute_tokens(images, target=3).shape)

# %% [markdown]
# Is it right? A linear model is enough to compare the rule with the formula:

# %%
linear = nn.Linear(8, 5).double()
features = torch.randn(1, 8, dtype=torch.float64)
found = epsilon_lrp(linear).attribute(features, target=2)
with torch.no_grad():
    weights, bias = linear.weight[2], linear.bias[2]
    score = features @ weights + bias
torch.testing.assert_close(found, features * weights / score)
print(f"{found.sum():.4f} goes on to the signal, the bias keeps {(bias / score).item():.4f}")

# %% [markdown]
# The gradient methods are also tables of rules, which run operations in a way that changes their
# gradient: `extend.AH` holds attention probabilities constant, `extend.LN` the denominators of
# norms. Together they are `ConservativeLRP`.

# %%
both = extend.GradientMethod(model, extend.joined(extend.AH, extend.LN))
print(both.attribute(images, target=3).shape)

# %% [markdown]
# ## An operation that is not known
#
# Unknown operations are refused. A model that uses a rare function:


# %%
class Rare(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        tokens = model.forward_features(images)
        return model.head(torch.atan2(tokens, torch.ones_like(tokens))[:, 0])


try:
    GenericAttentionRelevance(Rare()).attribute(images, target=3)
except UnsupportedOperationError as error:
    print(error)

# %% [markdown]
# With a constant as second argument, `atan2` maps each entry separately, as `gelu` does. After
# declaring this once, all passes treat it like the others of its kind:

# %%
extend.describe_function(torch.atan2, "input other", extend.Kind.ENTRYWISE)
print(GenericAttentionRelevance(Rare()).attribute(images, target=3).shape)

# %% [markdown]
# A custom `autograd.Function`, or a kernel of another package, is invisible to the trace.
# `extend.operation` turns a Python function into one operation:


# %%
class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:  # noqa: ARG004
        return 2 * tensor

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return 2 * gradients[0]


@extend.operation("input", extend.Kind.HOMOGENEOUS)
def doubled(tensor: Tensor) -> Tensor:
    result: Tensor = Doubled.apply(tensor)
    return result


found = GenericAttentionRelevance(lambda x: doubled(model(x))).attribute(images, target=3)
print(found.shape)

# %% [markdown]
# For comparison, the four methods of this page on one image, as shares of their positive relevance:

# %%
for method in (AttentionRollout, ValueNormRollout, TransformerAttribution, epsilon_lrp):
    values = method(model).attribute_tokens(images[:1], target=3)[0].clamp(min=0)
    shares = (values / values.sum()).mul(100).round().int().tolist()
    print(f"{method.__name__:<24}{shares}")
