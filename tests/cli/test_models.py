"""Models are loaded by name, from folders and with other arguments."""

import json
from pathlib import Path
from shutil import copytree, ignore_patterns

import timm
import torch


def test_a_hugging_face_model_of_images(checkpoints, photo, run):
    status, out, _ = run("explain", checkpoints / "hf-vit", photo, "-c", "dog")
    assert status == 0
    assert "dog (1), score" in out


def test_a_model_by_name_without_its_weights(photo, run):
    status, out, err = run("explain", "test_vit", photo, "--random-weights", "--top", "3")
    assert status == 0
    assert "explanations mean nothing" in err
    assert out.count("score") == 3
    # ImageNet's names come with timm.
    assert "class " not in out


def test_inspect(checkpoints, run):
    status, out, _ = run("inspect", checkpoints / "timm")
    assert status == 0
    assert out.startswith("VisionTransformer, ")
    assert "input x: (1, 3, 32, 32)" in out
    assert "layer 0: blocks.0.attn" in out
    for name, line in (("bert", "input input_ids: (1, 5)"), ("hf-vit", "(1, 3, 32, 32)")):
        status, out, _ = run("inspect", checkpoints / name, "--length", "5")
        assert status == 0
        assert line in out
    assert "not read" not in out


def test_inspect_by_name_needs_no_weights(run):
    status, out, _ = run("inspect", "test_vit", "--image-size", "64")
    assert status == 0
    assert "(1, 3, 64, 64)" in out


def test_a_model_that_is_built_with_other_arguments(photo, run):
    torch.manual_seed(0)
    shallow = timm.create_model("test_vit", img_size=32, num_classes=3, depth=2)
    torch.save(shallow.state_dict(), "shallow.pth")
    explain = "explain", "shallow.pth", "--architecture", "test_vit", "--image-size", "32", photo
    status, _, err = run(*explain)
    assert status == 2
    assert "missing: blocks.2.norm1.weight" in err
    assert "--model-kwargs" in err
    assert run(*explain, "--model-kwargs", "depth=2", "-m", "AttnLRP")[0] == 0
    assert "not an argument of a model" in run(*explain, "--model-kwargs", "pretrained=True")[2]
    status, _, err = run("explain", "shallow.pth", "--architecture", "test_vitt", photo)
    assert status == 2
    assert "Did you mean test_vit" in err


def test_folders_without_a_processor_or_a_tokenizer(checkpoints, photo, run):
    copytree(checkpoints / "hf-vit", "vit", ignore=ignore_patterns("preprocessor*"))
    status, _, err = run("explain", "vit", photo)
    assert status == 2
    assert "or pass --size, --mean and --std" in err
    status, _, err = run(
        "explain", "vit", photo, "--size", "32", "--mean", "0.5", "--std", "0.5", "--no-crop"
    )
    assert status == 0
    assert "pictures: the whole, 32 x 32, mean 0.5/0.5/0.5, std 0.5/0.5/0.5" in err
    copytree(checkpoints / "bert", "bert", ignore=ignore_patterns("*token*"))
    status, _, err = run("explain", "bert", "--text", "a film")
    assert status == 2
    assert "only special tokens" in err


def test_no_code_or_other_file_beside_a_checkpoint_is_used(photo, run):
    for name, config, message in (
        ("remote", {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, "neither"),
        ("unknown", {"model_type": "bert", "architectures": ["os"]}, "doesn't have"),
        (
            "timm",
            {"architecture": "test_vit", "model_args": {"checkpoint_path": "bad.ckpt"}},
            "arguments that models don't have",
        ),
        ("hub", {"architecture": "hf-hub:someone/else"}, "no architecture"),
    ):
        folder = Path(name)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "evil.py").write_text(
            "from pathlib import Path; Path('executed').touch()", encoding="utf-8"
        )
        status, _, err = run("explain", folder, photo)
        assert status == 2
        assert message in err
    assert not Path("executed").exists()


def test_models_that_cannot_be_loaded_are_refused(checkpoints, photo, run):
    Path("empty").mkdir()
    Path("notes.txt").write_text("no model", encoding="utf-8")
    Path("broken.safetensors").write_bytes(b"\xff" * 20)
    of = "--architecture", "test_vit"
    for arguments, message in (
        (["empty"], "has no config.json, so its model is unknown"),
        (["./missing"], "There is no file or folder ./missing"),
        (["missing.pth", *of], "There is no file or folder missing.pth"),
        (["notes.txt", *of], "is not a checkpoint"),
        (["broken.safetensors", *of], "can't be read as weights"),
        ([checkpoints / "vit.pth"], "--architecture"),
        ([checkpoints / "vit.pth", "--architecture", "no_such_vit"], "no architecture"),
        ([checkpoints / "vit.pth", "--architecture", "test_vit2"], "of another model"),
        ([checkpoints / "timm", "--device", "toaster"], "There is no device"),
        (["someone/no-such-model"], "neither a model of timm nor one of Hugging Face"),
    ):
        status, _, err = run("explain", *arguments, photo)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1


def test_models_with_other_inputs_are_refused(run):
    from transformers import WhisperConfig

    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    WhisperConfig(**sizes, **heads, architectures=["WhisperForConditionalGeneration"],
                  pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
                  ).save_pretrained("ears")  # fmt: skip
    for command in (["explain", "ears", "--random-weights", "--text", "a"], ["inspect", "ears"]):
        status, _, err = run(*command)
        assert status == 2
        assert "reads input_features" in err
