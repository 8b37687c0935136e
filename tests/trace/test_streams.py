"""Which tokens belong together, and which of them each attention call connects."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm.models.cait
import timm.models.vision_transformer as timm_vit
import torch
import transformers
from torch import Tensor, nn

from captum_transformer.calling import Arguments
from captum_transformer.trace import traced_forward
from captum_transformer.trace.streams import Streams
from tests.attr import tiny_models
from tests.attr.golden import load_case
from tests.attr.subjects import subject

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 30,
}
STARTS_AND_ENDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
BART: dict[str, Any] = {**tiny_models.BART, **STARTS_AND_ENDS}
IDS = torch.tensor([[5, 6, 7, 8, 2], [9, 4, 4, 3, 2]])


def streams(model: Callable[..., Any], *inputs: Tensor, read: Callable[[Streams], Any]) -> Any:
    with traced_forward(model, Arguments(inputs)) as forward:
        return read(forward.whole.streams)


def pairs(model: Callable[..., Any], *inputs: Tensor) -> Counter[tuple[str, str]]:
    return Counter(streams(model, *inputs, read=Streams.pairs))


def names(model: Callable[..., Any], *inputs: Tensor) -> list[str]:
    return streams(model, *inputs, read=lambda found: list(found.names().values()))


def has_cross_attention(model: Callable[..., Any], *inputs: Tensor) -> bool:
    return streams(model, *inputs, read=lambda found: found.cross_attention)


def pixels(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size)


def test_a_module_called_twice_may_connect_other_streams():
    case = load_case("lxmert_iccv21")
    with traced_forward(case.model, Arguments(case.inputs, case.extra)) as forward:
        found = forward.whole.streams.pairs()
        modules = [call.module for call in forward.calls]

    words, regions = "input_ids", "visual_feats"
    of_layer = [(words, regions), (regions, words), (words, words), (regions, regions)]
    assert found == [(words, words)] * 3 + [(regions, regions)] * 2 + of_layer * 3
    assert modules[5] == modules[6]


def test_layers_that_share_their_weights():
    model = transformers.AlbertModel(transformers.AlbertConfig(**SIZES, embedding_size=8))

    assert pairs(model, IDS) == {("input_ids", "input_ids"): 2}


def test_concatenated_tokens_are_one_stream():
    given = subject("pixels and ids")

    assert names(given.model, *given.inputs) == ["pixels+ids"]
    assert not has_cross_attention(given.model, *given.inputs)


def test_two_class_tokens_belong_to_the_stream():
    given = subject("timm DeiT, distilled")

    assert names(given.model, given.inputs) == ["x"]


def test_features_that_are_added_are_the_same_tokens():
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.boxes = nn.Linear(4, 16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
            return self.layer(features + self.boxes(boxes)).mean(1)

    found = pairs(Regions().eval(), torch.randn(2, 5, 16), torch.randn(2, 5, 4))
    assert found == {("features+boxes", "features+boxes"): 1}


def test_an_added_condition_stays_its_own_stream():
    def conditioned(words: Tensor, regions: Tensor) -> Tensor:
        words = words + regions.mean(1, keepdim=True)
        words = words + (words @ words.mT).softmax(-1) @ words
        return (words + (words @ regions.mT).softmax(-1) @ regions).mean(1)

    found = pairs(conditioned, torch.randn(2, 3, 16), torch.randn(2, 5, 16))
    assert found == {("words", "words"): 1, ("words", "regions"): 1}


def test_queries_and_keys_stay_two_streams():
    class Weighed(nn.Module):
        """Scores that are scaled, masked and reshaped before any of the tokens has attended."""

        def forward(self, words: Tensor, regions: Tensor) -> Tensor:
            scores = (words @ regions.mT / 4 + torch.zeros(3, 5)).view(2, 3, 5)
            return (scores.softmax(-1) @ regions + words).mean(1)

    class Additive(nn.Module):
        """Scores of Bahdanau et al.: each word's features are added to those of each region."""

        def forward(self, words: Tensor, regions: Tensor) -> Tensor:
            scores = torch.tanh(words.unsqueeze(2) + regions.unsqueeze(1)).mean(-1)
            weighed = scores.softmax(-1) @ regions
            return (words + weighed + (words @ regions.mT).softmax(-1) @ regions).mean(1)

    words, regions = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    assert pairs(Weighed(), words, regions) == {("words", "regions"): 1}
    assert pairs(Additive(), words, regions) == {("words", "regions"): 2}


def test_tokens_concatenated_after_attention_stay_apart():
    class Appended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, words: Tensor, regions: Tensor, sounds: Tensor) -> Tensor:
            memory = torch.cat([self.layer(words), regions, sounds], 1)
            return (regions + (regions @ sounds.mT).softmax(-1) @ sounds).mean(1) + memory.mean(1)

    given = (torch.randn(2, n, 16) for n in (3, 4, 5))
    assert pairs(Appended().eval(), *given) == {("words", "words"): 1, ("regions", "sounds"): 1}


def test_an_encoder_and_a_decoder():
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)).eval()

    def generate(input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        return model(input_ids=input_ids, decoder_input_ids=decoder_input_ids).logits

    assert pairs(generate, IDS, IDS[:, :3]) == {
        ("input_ids", "input_ids"): 2,
        ("decoder_input_ids", "decoder_input_ids"): 2,
        ("decoder_input_ids", "input_ids"): 2,
    }
    assert has_cross_attention(generate, IDS, IDS[:, :3])


def test_a_decoder_with_fixed_ids_has_learned_queries():
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)).eval()

    def generate(input_ids: Tensor) -> Tensor:
        return model(input_ids=input_ids, decoder_input_ids=IDS[:, :3]).logits

    assert pairs(generate, IDS) == {
        ("input_ids", "input_ids"): 2,
        ("learned", "learned"): 2,
        ("learned", "input_ids"): 2,
    }


def test_two_streams_that_are_made_from_one_input():
    model = transformers.BartForSequenceClassification(transformers.BartConfig(**BART)).eval()

    assert pairs(model, IDS) == {
        ("input_ids", "input_ids"): 2,
        ("input_ids (2)", "input_ids (2)"): 2,
        ("input_ids (2)", "input_ids"): 2,
    }
    assert has_cross_attention(model, IDS)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_learned_queries_that_attend_to_each_other_first(attention: str):
    case = load_case("detr_iccv21", attention)
    with traced_forward(case.model, Arguments(case.inputs, case.extra)) as forward:
        found = forward.whole.streams.pairs()

    image, learned = "pixel_values", "learned"
    assert found == [(image, image)] * 3 + [(learned, learned), (learned, image)] * 3


def test_frozen_learned_queries_are_a_stream():
    case = load_case("detr_iccv21", "sdpa")
    model = case.model
    trained = {p for p in model.parameters() if p.requires_grad}
    model.requires_grad_(False)
    try:
        assert pairs(model, case.inputs)[("learned", "learned")] == 3
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def test_attention_pooling_is_no_cross_attention():
    model = timm_vit.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, global_pool="map",
        class_token=False, num_classes=5,
    ).eval()  # fmt: skip

    assert pairs(model, pixels()) == {("x", "x"): 2, ("learned", "x"): 1}
    assert not has_cross_attention(model, pixels())


def test_class_attention_is_no_cross_attention():
    model = timm.models.cait.Cait(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5
    ).eval()

    assert pairs(model, pixels()) == {("x", "x"): 4}
    assert not has_cross_attention(model, pixels())


class Latents(nn.Module):
    """Learned latents read a sequence, attend to each other and read it again."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 3, 16))
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        latents = self.latents.expand(len(tokens), -1, -1)
        for keys in (tokens, None, tokens):
            keys = latents if keys is None else keys
            latents = latents + self.attend(latents, keys, keys)[0]
        return latents.mean(1)


def test_latents_belong_to_what_they_read_first():
    model, tokens = Latents(), torch.randn(2, 7, 16)

    expected = {("learned", "tokens"): 2, ("learned", "learned"): 1}
    assert pairs(model, tokens) == expected
    assert not has_cross_attention(model, tokens)


def test_learned_prefixes_of_the_keys_are_no_cross_attention():
    class Prefixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(16, 48)
            self.prefix = nn.Parameter(torch.randn(2, 2, 16))

        def forward(self, tokens: Tensor) -> Tensor:
            query, key, value = self.qkv(tokens).chunk(3, -1)
            key, value = (torch.cat([self.prefix, part], 1) for part in (key, value))
            return (torch.softmax(query @ key.mT, -1) @ value).mean(1)

    assert not has_cross_attention(Prefixed(), torch.randn(2, 5, 16))


def test_concatenated_towers_are_one_stream():
    class Fusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(4)
            )

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            of_image, of_text, *together = self.layers
            tokens = torch.cat([of_image(image), of_text(text)], 1)
            for layer in together:
                tokens = layer(tokens)
            return tokens.mean(1)

    model, inputs = Fusion().eval(), (torch.randn(2, 5, 16), torch.randn(2, 3, 16))
    alone, both = [("image", "image"), ("text", "text")], ("image+text", "image+text")
    assert streams(model, *inputs, read=Streams.pairs) == [*alone, both, both]
    assert not has_cross_attention(model, *inputs)


def test_parallel_branches_meet_in_one_version():
    model = timm_vit.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=5,
        block_fn=timm_vit.ParallelThingsBlock,
    ).eval()  # fmt: skip
    with traced_forward(model, Arguments(pixels())) as forward:
        _, value = forward.select(0)
        (version,) = forward.whole.streams[value]
        assert version.call is None
        assert {before.call for before in version.before} == set(forward.calls)


def test_a_softmax_of_constants_is_no_attention():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Parameter(torch.randn(1, 5, 5))

        def forward(self, tokens: Tensor) -> Tensor:
            mixed = self.scores.expand(len(tokens), -1, -1).softmax(-1) @ tokens
            return (torch.softmax(mixed @ mixed.mT, -1) @ mixed).mean(1)

    assert pairs(Positions(), torch.randn(2, 5, 16)) == {("tokens", "tokens"): 1}
