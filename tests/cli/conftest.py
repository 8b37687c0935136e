"""Tiny models as timm and Transformers save them, and a picture."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models._hub import save_for_hf
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import BertProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from captum_transformer.cli.main import main

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    arguments = {"img_size": 32, "num_classes": 3}
    vit = timm.create_model("test_vit", **arguments)
    torch.nn.init.normal_(vit.head.weight)
    labels = ["tabby, tabby cat", "tiger cat", "zebra"]
    save_for_hf(
        vit,
        folder / "timm",
        model_config={"num_classes": 3, "label_names": labels},
        model_args={"img_size": 32},
        safe_serialization=True,
    )
    torch.save(vit.state_dict(), folder / "vit.pth")
    training = {f"model.{key}": value for key, value in vit.state_dict().items()}
    torch.save({"state_dict": training | {"loss.weight": torch.ones(3)}}, folder / "last.ckpt")

    config = ViTConfig(
        **SIZES, intermediate_size=16, image_size=32, patch_size=8,
        id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder / "hf-vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "hf-vit")

    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(["an unbelievable film"] * 3, vocab_size=30, show_progress=False)
    ends = [(token, pieces.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    pieces._tokenizer.post_processor = BertProcessing(*ends)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, pad_token="[PAD]")
    tokenizer.save_pretrained(folder / "bert")
    config = BertConfig(
        **SIZES, intermediate_size=16, vocab_size=40, max_position_embeddings=64,
        id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder / "bert")
    _save_language_models(folder)
    return folder


CORPUS = "Paris is the capital of France . Rome is the capital of Italy . Where? In Paris, in Rome."


def _save_language_models(folder):
    letters = ByteLevelBPETokenizer()
    letters.train_from_iterator(
        [CORPUS] * 3, vocab_size=330, show_progress=False, special_tokens=["<s>", "</s>"]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        model_max_length=64,
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for each in messages %}<s>{{ each.role }}: {{ each.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant:{% endif %}"
    )
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=len(tokenizer), n_positions=64,
            initializer_range=0.5, **special,
        )
    )  # fmt: skip
    bart = BartForConditionalGeneration(
        BartConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
            vocab_size=len(tokenizer), max_position_embeddings=64, decoder_start_token_id=1,
            forced_eos_token_id=None, **special,
        )
    )  # fmt: skip
    for name, model in (("gpt2", gpt2), ("bart", bart)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


@pytest.fixture
def photo(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs the command line in an empty folder: exit status, output and complaints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()  # drops output of the test itself, such as progress bars
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's
            status = stop.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return status, said.out, said.err

    return run
