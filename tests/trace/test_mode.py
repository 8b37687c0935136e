"""Every way of writing attention is seen, and in-place operations are followed rightly."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer import ConservativeLRP, GenericAttentionRelevance, TransformerAttribution
from captum_transformer.calling import Arguments
from captum_transformer.errors import InvalidInputError, NoAttentionError, UnseenOperationError
from captum_transformer.trace import ExplicitAttention, FusedAttention, traced_forward
from captum_transformer.trace.heads import by_head
from captum_transformer.trace.mode import Trace

HEADS, WIDTH, CLASSES = 2, 8, 3


class Attention(nn.Module):
    """One residual attention block on embeddings; subclasses write the attention differently."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x[:, 0])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Softmaxed(Attention):
    def attend(self, q, k, v):
        return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v


class Einsum(Attention):
    def attend(self, q, k, v):
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
        weights = scores.softmax(dim=-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v.transpose(1, 2)).transpose(1, 2)


class Batched(Attention):
    def attend(self, q, k, v):
        b, h, n, d = q.shape
        q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
        weights = F.softmax(torch.bmm(q, k.mT) * d**-0.5, dim=-1, dtype=torch.float32)
        weights = F.dropout(weights.to(v.dtype), 0.5, training=True)
        return torch.bmm(weights, v).view(b, h, n, d)


class InPlace(Attention):
    def attend(self, q, k, v):
        scores = torch.empty(*q.shape[:-1], k.shape[-2], dtype=q.dtype)
        scores.copy_(q @ k.transpose(-1, -2))
        scores *= q.shape[-1] ** -0.5
        scores.masked_fill_(torch.zeros_like(scores, dtype=torch.bool), -math.inf)
        scores -= scores.detach().amax(-1, keepdim=True)
        return F.dropout(scores.softmax(-1), 0.1, training=True).matmul(v)


class Transposed(Attention):
    def attend(self, q, k, v):
        weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
        return (v.mT @ weights.mT).mT


class TransposedEinsum(Attention):
    def attend(self, q, k, v):
        weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
        return torch.einsum("bhkd,bhqk->bhqd", v, weights)


class Dotted(Attention):
    def attend(self, q, k, v):
        weights = torch.softmax(torch.einsum("...id, ...jd", q, k) * q.shape[-1] ** -0.5, -1)
        return torch.einsum("...qk,...kd->...qd", [weights, v])


class Grouped(Attention):
    def attend(self, q, k, v):
        # Two query heads read one key and value head each, through `enable_gqa`.
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


WRITTEN = [Softmaxed, Einsum, Batched, InPlace, Transposed, TransposedEinsum, Dotted, Grouped]


def same_weights(kind: type[Attention]) -> tuple[Attention, Attention]:
    torch.manual_seed(0)
    reference, other = Attention().double(), kind().double()
    other.load_state_dict(reference.state_dict())
    return reference, other


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize(
    "method", [GenericAttentionRelevance, TransformerAttribution, ConservativeLRP]
)
def test_attention_is_the_same_however_it_is_written(kind, method, x):
    reference, other = same_weights(kind)
    # Batched computes its softmax in float32.
    bound = {"rtol": 1e-5, "atol": 1e-7} if kind is Batched else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(
        method(other).attribute(x, target=1), method(reference).attribute(x, target=1), **bound
    )


@pytest.mark.parametrize("kind", [Attention, *WRITTEN])
def test_the_probabilities_of_a_call_are_those_of_the_model(kind, x):
    _, model = same_weights(kind)
    q, k, _ = model.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    expected = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
    with traced_forward(model, Arguments(x)) as forward:
        (call,) = forward.calls
        assert isinstance(
            call, FusedAttention if kind in (Attention, Grouped) else ExplicitAttention
        )
        probabilities = by_head(call, call.probabilities(slice(None)))
    torch.testing.assert_close(probabilities, expected.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"attn_mask": torch.tensor([[True] * 4 + [False]])},
        {"attn_mask": torch.randn(3, 1, 5, 5, dtype=torch.float64)},
        {"is_causal": True},
        {"scale": 0.3},
        {"dropout_p": 0.9},
    ],
    ids=["bool mask", "bias", "causal", "scale", "dropout"],
)
def test_the_options_of_fused_attention_are_honoured(options, x):
    class Fused(Attention):
        def attend(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, **options)

    class Written(Attention):
        def attend(self, q, k, v):
            scores = q @ k.transpose(-1, -2) * options.get("scale", q.shape[-1] ** -0.5)
            mask = options.get("attn_mask")
            if options.get("is_causal"):
                mask = torch.ones(5, 5, dtype=torch.bool).tril()
            if mask is not None and mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, -math.inf)
            elif mask is not None:
                scores = scores + mask
            return scores.softmax(-1) @ v

    _, fused = same_weights(Fused)
    _, written = same_weights(Written)
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        torch.testing.assert_close(
            method(fused).attribute(x, target=0), method(written).attribute(x, target=0)
        )


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_is_taken_apart(need_weights, batch_first, x):
    class Multihead(Attention):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, 0.5, batch_first=batch_first)

        def forward(self, x):
            self.attention.in_proj_weight.data.copy_(self.qkv.weight)
            self.attention.in_proj_bias.data.copy_(self.qkv.bias)
            self.attention.out_proj.load_state_dict(self.out.state_dict())
            y = x if batch_first else x.transpose(0, 1)
            y = self.attention(y, y, y, need_weights=need_weights)[0]
            return self.head((x + (y if batch_first else y.transpose(0, 1)))[:, 0])

    torch.manual_seed(0)
    reference, other = Attention().double(), Multihead().double()
    other.load_state_dict(reference.state_dict(), strict=False)
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        torch.testing.assert_close(
            method(other).attribute(x, target=1), method(reference).attribute(x, target=1)
        )


def test_grouped_heads_equal_repeated_heads(x):
    class Shared(Attention):
        def attend(self, q, k, v):
            return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)

    class Repeated(Attention):
        def attend(self, q, k, v):
            k, v = (t[:, :1].repeat_interleave(HEADS, 1) for t in (k, v))
            return F.scaled_dot_product_attention(q, k, v)

    _, shared = same_weights(Shared)
    _, repeated = same_weights(Repeated)
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        torch.testing.assert_close(
            method(shared).attribute(x, target=1), method(repeated).attribute(x, target=1)
        )


def test_calls_have_layers_and_module_names(x):
    model = nn.Sequential(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 8, batch_first=True), 2),
        nn.Flatten(),
        nn.Linear(5 * WIDTH, CLASSES),
    ).double()
    with traced_forward(model, Arguments(x)) as forward:
        assert [call.layer for call in forward.calls] == [0, 1]
        assert [call.module for call in forward.calls] == [
            "0.layers.0.self_attn",
            "0.layers.1.self_attn",
        ]
        assert forward.calls[0].map_shape() == (3, HEADS, 5, 5)


def attending(change):
    """A model that changes its input in some way before attention."""

    class Changed(Attention):
        def forward(self, x):
            return super().forward(change(x))

    return same_weights(Changed)[1]


def add_in_place(x):
    y = x * 2
    z = y + x
    y += 1
    y.mul_(3)
    return z + y


def add_out_of_place(x):
    y = x * 2
    return (y + x) + (y + 1) * 3


def write_into_view(x):
    y = x.clone()
    view = y[:, 1:3]
    view.mul_(2)
    view += x[:, :2]
    return y * y


def write_without_view(x):
    middle = x[:, 1:3] * 2 + x[:, :2]
    y = torch.cat([x[:, :1], middle, x[:, 3:]], 1)
    return y * y


def read_stale_view(x):
    y = x.clone()
    view = y.transpose(0, 1)
    y[:, 0] = x[:, 1]
    y[:, 1] += 1
    return view.transpose(0, 1) + x


def read_fresh(x):
    y = torch.cat([x[:, 1:2], x[:, 1:2] + 1, x[:, 2:]], 1)
    return y + x


def fill_buffer(x):
    buffer = torch.zeros(x.shape[0], 8, x.shape[2], dtype=x.dtype)
    part = buffer[:, 1:6]
    part.copy_(x)
    buffer[:, 6] = x[:, 0]
    return F.relu(buffer, inplace=True)


def concatenate(x):
    zero = torch.zeros_like(x[:, :1])
    return F.relu(torch.cat([zero, x, x[:, :1], zero], 1))


@pytest.mark.parametrize(
    ("in_place", "out_of_place"),
    [
        (add_in_place, add_out_of_place),
        (write_into_view, write_without_view),
        (read_stale_view, read_fresh),
        (fill_buffer, concatenate),
    ],
)
def test_writing_in_place_changes_no_relevance(in_place, out_of_place, x):
    written, plain = attending(in_place), attending(out_of_place)
    torch.testing.assert_close(written(x), plain(x))
    for method in (
        GenericAttentionRelevance(written),
        TransformerAttribution(written, propagate_to_input=True),
        ConservativeLRP(written),
    ):
        expected = type(method)(plain)
        if isinstance(method, TransformerAttribution):
            expected.propagate_to_input = True
        torch.testing.assert_close(
            method.attribute(x, target=1), expected.attribute(x, target=1), rtol=1e-6, atol=1e-9
        )


def test_saved_operands_keep_their_values(x):
    def overwrite(x):
        y = x + 1
        z = y * 2 + y
        y.zero_()
        return z

    model = attending(overwrite)
    with traced_forward(model, Arguments(x), keep=frozenset(_all_kinds())) as forward:
        additions = [o for o in forward.tape.operations if o.name == "add"]
        held = additions[1].operands[1].tensor
    torch.testing.assert_close(held, x + 1)


def _all_kinds():
    from captum_transformer.trace.functions import Kind

    return Kind


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        weights = torch.softmax(q @ k.mT, -1)
        ctx.save_for_backward(weights)
        return weights @ v

    @staticmethod
    def backward(ctx, gradient):
        (weights,) = ctx.saved_tensors
        return None, None, weights.mT @ gradient


def test_what_cannot_be_seen_is_refused(x):
    class Unseen(Attention):
        def attend(self, q, k, v):
            return _Hidden.apply(q, k, v)

    _, model = same_weights(Unseen)
    with pytest.raises(UnseenOperationError, match=r"_HiddenBackward.*attn_implementation='sdpa'"):
        GenericAttentionRelevance(model).attribute(x, target=0)


def test_a_model_without_attention_is_refused(x):
    model = nn.Sequential(nn.Flatten(), nn.Linear(5 * WIDTH, CLASSES)).double()
    with pytest.raises(NoAttentionError, match=r"Looked for: .*scaled_dot_product_attention"):
        GenericAttentionRelevance(model).attribute(x, target=0)


def test_writing_through_data_is_refused(x):
    def assign(x):
        y = x * 1
        y.data = torch.zeros_like(y)
        return y

    with pytest.raises(UnseenOperationError, match=r"`\.data`"):
        GenericAttentionRelevance(attending(assign)).attribute(x, target=0)


def test_nothing_is_left_behind_outside_the_context(x):
    before = torch.overrides._get_current_function_mode_stack()
    model = attending(lambda x: x / 0 if x.sum() else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        GenericAttentionRelevance(model).attribute(torch.zeros_like(x), target=0)
    assert torch.overrides._get_current_function_mode_stack() == before
    with Trace():
        assert isinstance(torch.zeros(1) + 1, Tensor)


@pytest.mark.parametrize("tokens", [1, WIDTH // HEADS, WIDTH, 3])
def test_axes_of_equal_length_are_not_confused(tokens):
    """As many tokens as samples, as features, as features of a head, or only one."""
    x = torch.randn(3, tokens, WIDTH, dtype=torch.float64)

    class Deep(Softmaxed):
        def forward(self, x):
            for _ in range(3):
                q, k, v = self.qkv(x).chunk(3, -1)
                x = x + self.out(self.attend(q, k, v))
            return self.head(x[:, 0])

    class DeepFused(Deep):
        attend = Attention.attend

    explicit, fused = same_weights(Deep)[1], same_weights(DeepFused)[1]
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        torch.testing.assert_close(
            method(explicit).attribute(x, target=1), method(fused).attribute(x, target=1)
        )


class OnIds(nn.Module):
    """Looks ids up, after doing something to them first."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.block, self.change = nn.Embedding(10, WIDTH), Attention(), change

    def forward(self, ids):
        return self.block(self.table(self.change(ids)))


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: ids.long(),
        lambda ids: ids.int(),
        lambda ids: ids.clamp(min=0),
        lambda ids: ids.view(-1, 5),
        lambda ids: torch.where(ids > 20, 0, ids),
    ],
)
def test_ids_may_be_cast_clamped_and_reshaped(change):
    ids = torch.randint(1, 10, (3, 5), dtype=torch.int32)
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        torch.testing.assert_close(
            method(OnIds(change)).attribute(ids, target=1),
            method(OnIds(lambda ids: ids)).attribute(ids, target=1),
        )


def test_outputs_may_be_picked_by_the_ids_themselves():
    class Likelihood(OnIds):
        def forward(self, ids):
            hidden = self.block.out(self.table(ids))
            hidden = hidden + F.scaled_dot_product_attention(hidden, hidden, hidden)
            scores = (hidden @ self.table.weight.mT).log_softmax(-1)
            return scores.gather(-1, ids[..., None])[..., 0].sum(-1)

    model = Likelihood(None)
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        assert method(model).attribute(torch.randint(0, 10, (2, 4))).any()


def test_parts_that_the_target_does_not_depend_on_are_left_out(x):
    class Auxiliary(Attention):
        def forward(self, x, unused):
            q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            side = self.attend(k, q, v).sum((1, 2, 3))
            return {"scores": super().forward(x), "auxiliary": side + unused.sum((1, 2))}

    _, model = same_weights(Auxiliary)
    reference, _ = same_weights(Attention)
    for method in (GenericAttentionRelevance, TransformerAttribution, ConservativeLRP):
        with pytest.raises(InvalidInputError, match="'unused'"):
            method(model).attribute((x, x.clone()), target=1)
        used = method(model).attribute(x, target=1, additional_forward_args=(x.clone(),))
        torch.testing.assert_close(used, method(reference).attribute(x, target=1))
