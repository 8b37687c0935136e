"""Arguments other than tensors are restored, and each forward pass starts from them."""

import collections
import functools
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from captum_transformer import ConservativeLRP, GenericAttentionRelevance
from captum_transformer.calling.copies import copied, tensors_in
from captum_transformer.errors import InvalidInputError
from tests.attr.subjects import METHODS, assert_close
from tests.attr.tiny_models import embeddings, encoder

pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config).double().eval()


IDS = torch.tensor([[5, 11, 7, 30, 9, 21, 40], [6, 3, 44, 12, 31, 8, 17]])
PREFIX, REST = IDS[:, :4], IDS[:, 4:]
TARGET = (2, 17)


def filled(kind: str, model: nn.Module, rows: slice = slice(None)) -> Any:
    cache = DynamicCache()
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=12)
    with torch.no_grad():
        model(PREFIX[rows], past_key_values=cache, use_cache=True)
    return cache


def contents(cache: Any) -> list[tuple[int, int, bool, Tensor]]:
    return [(id(t), t._version, t.requires_grad, t.clone()) for t in tensors_in(cache)]


def assert_same(before: Any, after: Any) -> None:
    assert len(before) == len(after)
    for (*known, values), (*found, others) in zip(before, after, strict=True):
        assert known == found
        assert torch.equal(values, others)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_is_restored_and_gives_the_same_again(kind: str, method: str) -> None:
    model = llama()
    cache = filled(kind, model)
    before = contents(cache)
    explain = METHODS[method]

    def with_own_cache(ids: Tensor) -> Tensor:
        return model(ids, past_key_values=filled(kind, model)).logits

    found = [
        explain(model).attribute(REST, TARGET, additional_forward_kwargs={"past_key_values": cache})
        for _ in range(2)
    ]

    assert_same(before, contents(cache))
    assert torch.equal(*found)
    assert_close(found[0], explain(with_own_cache).attribute(REST, TARGET))


def test_a_cache_in_a_partial() -> None:
    model = llama()
    cache = filled("dynamic", model)
    before = contents(cache)
    function = functools.partial(model, past_key_values=cache)

    first, again = (ConservativeLRP(function, gamma=0.1).attribute(REST, TARGET) for _ in "ab")

    assert_same(before, contents(cache))
    assert torch.equal(first, again)


def test_a_cache_of_encoder_and_decoder() -> None:
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=50,
        max_position_embeddings=20,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    model = transformers.BartForConditionalGeneration(config).double().eval()
    with torch.no_grad():
        encoded = model.model.encoder(IDS)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        model(encoder_outputs=encoded, decoder_input_ids=PREFIX, past_key_values=cache)
    before, updated = contents(cache), dict(cache.is_updated)
    further = {"encoder_outputs": encoded, "past_key_values": cache}

    first, again = (
        GenericAttentionRelevance(model).attribute(
            {"decoder_input_ids": REST}, TARGET, additional_forward_kwargs=further
        )["decoder_input_ids"]
        for _ in "ab"
    )

    assert torch.equal(first, again)
    assert_same(before, contents(cache))
    assert cache.is_updated == updated


def test_samples_a_few_at_a_time_refuse_a_cache_of_all() -> None:
    model = llama()
    method = GenericAttentionRelevance(model)

    def explained(cache: Any, rows: slice = slice(None), **options: Any) -> Tensor:
        named = {"past_key_values": cache}
        return method.attribute(REST[rows], TARGET, additional_forward_kwargs=named, **options)

    with pytest.raises(InvalidInputError, match="DynamicCache that holds tensors of all 2 samples"):
        explained(filled("dynamic", model), internal_batch_size=1)

    whole = explained(filled("dynamic", model), internal_batch_size=2)
    one_by_one = [
        explained(filled("dynamic", model, rows), rows) for rows in (slice(0, 1), slice(1, 2))
    ]
    assert_close(torch.cat(one_by_one), whole)


@dataclass
class Settings:
    """An object as users write them."""

    scale: Tensor
    seen: list[Tensor] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"calls": 0})
    lock: Any = field(default_factory=threading.Lock)


class Greedy(nn.Module):
    """Writes into everything that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()

    def forward(self, tokens: Tensor, settings: Settings, named: Any, mask: Tensor) -> Tensor:
        settings.counts["calls"] += 1
        settings.scale.mul_(1 + settings.counts["calls"])
        settings.seen.append(tokens)
        named["deque"].append(tokens)
        named["set"].add("seen")
        named["tuple"][0]["mask"].copy_(tokens[:, :, 0])
        named.new = tokens
        mask += 1
        return self.encoder(tokens) * settings.scale * mask.mean()


class Named(dict):
    """A mapping with attributes."""


def test_arguments_that_a_model_writes_into_are_restored() -> None:
    settings = Settings(torch.tensor(2.0, dtype=torch.float64))
    named = Named(deque=collections.deque([1]), set={"old"}, tuple=({"mask": torch.zeros(2, 5)},))
    mask = torch.ones(2, 1, dtype=torch.float64)
    tokens = embeddings()
    named["tuple"][0]["mask"] = torch.zeros_like(tokens[:, :, 0])
    method = ConservativeLRP(Greedy(), gamma=0.5)

    found = [method.attribute(tokens, 1, (settings, named, mask)) for _ in range(3)]

    expected = ConservativeLRP(lambda x: encoder()(x) * 4 * 2, gamma=0.5).attribute(tokens, 1)
    for each in found:
        assert_close(each, expected)
    assert settings.scale == 2
    assert (settings.seen, settings.counts) == ([], {"calls": 0})
    assert (list(named["deque"]), named["set"]) == ([1], {"old"})
    assert not hasattr(named, "new")
    assert not named["tuple"][0]["mask"].any()
    assert not named["tuple"][0]["mask"].requires_grad
    assert torch.equal(mask, torch.ones_like(mask))
    assert mask._version == settings.scale._version == 0


def test_copies_overlap_where_their_originals_do() -> None:
    whole = torch.zeros(3, 4)
    copy = copied({"whole": whole, "rows": list(whole), "bits": whole.view(torch.int32)})

    copy["rows"][1].fill_(1)

    assert copy["whole"].sum() == 4
    assert copy["bits"][1].all()
    assert not whole.any()


def test_copies_of_what_is_apart_take_no_more_than_they_need() -> None:
    data = torch.zeros(1000, 4)
    copy = copied((data[0], data[1]))

    assert [part.untyped_storage().nbytes() for part in copy] == [16, 16]


class Slotted:
    __slots__ = ("__hidden", "items")

    def __init__(self) -> None:
        self.items = [1]
        self.__hidden = [2]

    def hidden(self) -> list[int]:
        return self.__hidden


def test_copies_share_modules_and_locks() -> None:
    module, lock, item = nn.Linear(1, 1), threading.Lock(), Slotted()
    circle: list[Any] = [module, lock, len, (1, "text"), item]
    circle.append(circle)

    copy = copied(circle)

    assert copy is not circle
    assert copy[-1] is copy
    assert all(copy[i] is circle[i] for i in range(4))
    assert copy[4].items == [1]
    assert copy[4].items is not item.items
    assert copy[4].hidden() == [2]
    assert copy[4].hidden() is not item.hidden()


def test_a_random_generator_goes_on_from_where_it_was() -> None:
    generator = torch.Generator().manual_seed(3)

    def noisy(tokens: Tensor, generator: torch.Generator) -> Tensor:
        return encoder()(tokens + torch.randn(tokens.shape, generator=generator))

    before = generator.get_state()
    method = GenericAttentionRelevance(noisy)
    first, again = (method.attribute(embeddings(), 1, (generator,)) for _ in "ab")

    assert torch.equal(first, again)
    assert torch.equal(generator.get_state(), before)
