r"""A page where a picture is dropped or a text typed, and a class and a method are chosen.

    pip install gradio
    python tutorials/demo_app.py

The models are tiny, and trained when it starts: one tells a temple from a flower, the other good
from bad. Others are loaded by name:

    python tutorials/demo_app.py --image-model vit_base_patch16_224 \
        --text-model distilbert-base-uncased-finetuned-sst-2-english
"""

import argparse
from copy import copy
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

import captum_transformer
from captum_transformer.errors import ExplanationError, InvalidInputError
from captum_transformer.explainers import ImageExplainer, TextExplainer

METHODS = ["TransformerAttribution", "AttnLRP", "GenericAttentionRelevance", "LeGrad"]
PREDICTED = "what the model predicts"
TEXT = "the ending was wonderful though the music seemed loud"


def image_explainer(name: str | None = None) -> tuple[ImageExplainer, list[str]]:
    """A classifier of pictures, by the name that timm has for it, and the names of its classes."""
    if name is not None:
        model = timm.create_model(name, pretrained=True)
        config = timm.data.resolve_data_config({}, model=model)
        names = timm.data.ImageNetInfo().label_descriptions()
        return ImageExplainer(model, timm.data.create_transform(**config), names=names), names
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=96, patch_size=8, embed_dim=64, depth=3, num_heads=4,
        num_classes=2,
    )  # fmt: skip
    photos = [torch.tensor(p).permute(2, 0, 1) / 127.5 - 1 for p in load_sample_images().images]

    def piece(photo: torch.Tensor) -> torch.Tensor:
        size = int(torch.randint(120, 400, ()))
        y, x = int(torch.randint(427 - size, ())), int(torch.randint(640 - size, ()))
        return F.interpolate(photo[None, :, y : y + size, x : x + size], (48, 48), mode="area")

    pieces = torch.stack([torch.cat([piece(photo) for _ in range(64)]) for photo in photos])

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        # Pictures of four pieces each; half of them have only one of the two.
        which = torch.randint(2, (16, 4))
        which[::2] = which[::2, :1]
        cells = pieces[which, torch.randint(64, which.shape)].view(-1, 2, 2, 3, 48, 48)
        images = cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 96, 96)
        return images, torch.stack([(which == 0).any(1), (which == 1).any(1)], 1).float()

    _train(model, batch, F.binary_cross_entropy_with_logits)
    transform = timm.data.create_transform(
        (3, 96, 96), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, crop_mode="squash"
    )
    names = ["temple", "flower"]
    return ImageExplainer(model, transform, names=names, activation="sigmoid"), names


def example() -> Any:
    """Both photographs side by side, as an array of pixels: which of them is it about?"""
    return np.concatenate([photo[:, 100:527] for photo in load_sample_images().images], 1)


def text_explainer(name: str | None = None) -> tuple[TextExplainer, list[str]]:
    """A classifier of texts, by its name on the Hugging Face Hub, and the names of its classes."""
    if name is not None:
        model = AutoModelForSequenceClassification.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        return TextExplainer(model, tokenizer), list(model.config.id2label.values())
    torch.manual_seed(0)
    things = "ending plot music cast".split()
    moods = "dull dreadful boring", "long loud usual", "wonderful charming brilliant"
    bad, neutral, good = (words.split() for words in moods)
    others = "[PAD] [UNK] the was seemed though".split()
    vocabulary = {word: n for n, word in enumerate([*others, *things, *bad, *neutral, *good])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )
    labels = {0: "bad", 1: "good"}
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32, id2label=labels,
    )  # fmt: skip
    model = BertForSequenceClassification(config)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(2, (32,))
        texts = []
        for label in labels.tolist():
            said = [_one((bad, good)[label]), _one(neutral)]
            first, second = said if torch.rand(()) < 0.5 else said[::-1]
            texts.append(
                f"the {_one(things)} was {first} though the {_one(things)} seemed {second}"
            )
        return tokenizer(texts, return_tensors="pt").input_ids, labels

    _train(model, batch, F.cross_entropy)
    return TextExplainer(model, tokenizer), list(labels.values())


def _one(words: list[str]) -> str:
    return words[int(torch.randint(len(words), ()))]


def _train(model: torch.nn.Module, batch: Any, loss: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        inputs, labels = batch()
        output = model(inputs)
        loss(getattr(output, "logits", output), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def explained(explainer: Any, given: Any, target: str, method: str) -> Any:
    """What the page shows of a picture or a text."""
    chosen = copy(explainer)
    chosen.method = getattr(captum_transformer, method)
    return chosen(given, None if target == PREDICTED else target)


def app(pictures: tuple[ImageExplainer, list[str]], texts: tuple[TextExplainer, list[str]]) -> Any:
    """The page."""
    import gradio

    def fields(names: list[str], method: str) -> list[Any]:
        target = gradio.Dropdown([PREDICTED, *names], value=PREDICTED, label="Class")
        return [target, gradio.Dropdown(METHODS, value=method, label="Method")]

    with gradio.Blocks(title="Why this class?", analytics_enabled=False) as page:
        with gradio.Tab("A picture"), gradio.Row():
            with gradio.Column():
                photo = gradio.Image(example(), type="pil", label="Picture")
                of_picture = [photo, *fields(pictures[1], "TransformerAttribution")]
            drawn = gradio.Image(show_label=False)
        with gradio.Tab("A text"), gradio.Row():
            with gradio.Column():
                of_text = [gradio.Textbox(TEXT, label="Text"), *fields(texts[1], "AttnLRP")]
            page_of_words = gradio.HTML()

        def found(explainer: Any, given: Any, *choices: str) -> Any:
            if not given:  # removed, or nothing typed yet
                return None
            try:
                return explained(explainer, given, *choices)
            except (ExplanationError, InvalidInputError) as error:
                raise gradio.Error(str(error)) from error

        def picture(*given: Any) -> Any:
            seen = found(pictures[0], *given)
            return seen and seen.draw()

        def text(*given: Any) -> Any:
            read = found(texts[0], *given)
            return read and read.to_html()

        for explain, parts, shown in ((picture, of_picture, drawn), (text, of_text, page_of_words)):
            gradio.on([page.load, *(part.change for part in parts)], explain, parts, shown)
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image-model", help="a name that timm knows")
    parser.add_argument("--text-model", help="a name on the Hugging Face Hub")
    chosen = parser.parse_args()
    app(image_explainer(chosen.image_model), text_explainer(chosen.text_model)).launch()
