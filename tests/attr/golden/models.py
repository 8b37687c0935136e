"""Unmodified models of timm and Transformers with the stored weights, and where to enter them."""

from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from tests.attr.golden.cases import Case, Stored


def vision_transformer(stored: Stored, attention: str) -> Case:
    model = timm.models.vision_transformer.VisionTransformer(**stored.manifest["kwargs"])
    model.load_state_dict(stored.state)
    model.norm.eps = stored.manifest["overrides"].get("model.norm.eps", model.norm.eps)
    model = model.double().eval()
    return Case(model, stored.inputs["pixel_values"], stored.targets(), stored.expected)


def pretrained(stored: Stored, attention: str, **options: Any) -> nn.Module:
    """A model of Transformers whose manifest names its class, configuration and arguments."""
    manifest = stored.manifest
    name = manifest["config_class"].rpartition(".")[2]
    if not hasattr(transformers, name):
        pytest.skip(f"Transformers {transformers.__version__} has no {name}")
    config = getattr(transformers, name)(**manifest["kwargs"], attn_implementation=attention)
    model = getattr(transformers, manifest["class"].rpartition(".")[2])(config, **options)
    model.load_state_dict(stored.state)
    return model.double().eval()


def bert(stored: Stored, attention: str) -> Case:
    extra = tuple(stored.inputs[key] for key in ("attention_mask",) if key in stored.inputs)
    targets: list[Any] = stored.targets()
    if "positions" in stored.inputs:
        positions = stored.inputs["positions"].tolist()
        targets = [list(zip(positions, target.tolist(), strict=True)) for target in targets]
    model = pretrained(stored, attention)
    return Case(model, stored.inputs["input_ids"], targets, stored.expected, extra)


def from_hidden_states(case: Case) -> Case:
    """BERT from the output of its embedding layer on."""
    model: Any = case.model
    hidden = model.bert.embeddings(case.inputs).detach()

    def from_hidden(hidden: Tensor, mask: Tensor) -> Tensor:
        closed = (1 - mask[:, None, None].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        encoded = model.bert.encoder(hidden, attention_mask=closed)[0]
        return model.classifier(model.bert.pooler(encoded))

    return case.instead(from_hidden, hidden)


def from_embeddings(case: Case) -> Case:
    """A language model from its word embeddings on."""
    model: Any = case.model
    vectors = model.get_input_embeddings()(case.inputs).detach()

    def from_vectors(vectors: Tensor, mask: Tensor | None = None) -> Any:
        return model(inputs_embeds=vectors, attention_mask=mask)

    return case.instead(from_vectors, vectors)
