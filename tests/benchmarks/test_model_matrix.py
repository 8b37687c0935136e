"""The page of the model matrix holds, and says what was expected of each structural kind."""

import re
from pathlib import Path

import pytest

from benchmarks.model_matrix.catalogue import FAMILIES, is_installed, representatives
from benchmarks.model_matrix.checks import Row, Verdict, row_of
from benchmarks.model_matrix.methods import METHODS
from benchmarks.model_matrix.page import differences, made_with, page

PAGE = (Path(__file__).parents[2] / "docs" / "model_matrix.md").read_text(encoding="utf-8")
EACH = {f"{family.library} {family.name}": family for family in FAMILIES}
GRADIENTS = {"ConservativeLRP", "AttnLRP", "AttnLRP, gamma", "GIM", "LibraGrad"}
REFUSED = {
    # Its weights are made of positions and contents at once: there is no map to multiply.
    "timm LambdaNet": set(METHODS) - {"full LRP"} - GRADIENTS,
    # Without a softmax it can't be told what to hold.
    "timm EfficientViT, ReLU linear attention": set(METHODS)
    - {"full LRP", "AttnLRP", "AttnLRP, gamma", "GIM"},
    "Transformers FNet": set(METHODS) - GRADIENTS,
    # Probabilities in chunks have no map that can be read off.
    "Transformers Longformer": set(METHODS) - GRADIENTS,
    "Transformers BigBird": set(METHODS) - GRADIENTS - {"full LRP"},
    # Its latents are made of the text without a skip beside, so no later layer leads back to it.
    "Transformers Perceiver": {"RawAttention", "AttentionGradCam", "PartialLRP"},
    # Its activation is a custom autograd function.
    "Transformers BLOOM": set(METHODS),
    # Its blocks of queries hold several heads' or windows' maps side by side.
    "timm HaloNet": {"AttentionGradCam"},
    # Samples' rows are picked by experts in no order, and added up.
    "Transformers JetMoE": {
        "TransformerAttribution",
        "full LRP",
        "PartialLRP",
        "AttentionGradCam",
    },
    # Recurrences mix tokens without a map.
    "Transformers Qwen3-Next": set(METHODS) - GRADIENTS - {"full LRP"},
    "Transformers Jamba": set(METHODS) - GRADIENTS - {"full LRP"},
    # A layer of several attention calls on the same tokens has no map of its own.
    "timm ViT, parallel branches": {"AttentionGradCam"},
    "Transformers ConvBERT": {"AttentionGradCam"},
    "Transformers DiffLlama": {"AttentionGradCam"},
    # Its blocks of tokens overlap, so their maps can't be multiplied as matrices.
    "Transformers LongT5": {
        "TransformerAttribution",
        "GenericAttentionRelevance",
        "AttentionRollout",
    },
}
# LeGrad lets one head read the tokens of all layers.
WITHOUT_ONE_HEAD = {
    # Layers have other numbers of tokens, or are built in another way.
    *("timm Swin", "timm CaiT", "timm MViTv2", "timm VOLO", "timm MobileViTv2", "timm DaViT"),
    "Transformers Funnel",
    # The score is read from two streams of tokens.
    "timm TNT",
    # Experts differ from layer to layer.
    *("Transformers GPT-OSS", "Transformers Mixtral", "Transformers DeepSeek-V2"),
    "Transformers JetMoE",
    # One set of tokens attends to another, or there is a language model behind a tower.
    *("Transformers T5", "Transformers LongT5", "Transformers LXMERT", "Transformers DETR"),
    *("Transformers LLaVA", "Transformers Qwen2.5-VL"),
    # Which maps are heads, or what latents lead back to, is not known.
    *("timm HaloNet", "Transformers ConvBERT", "Transformers Perceiver"),
}


MADE_WITH = made_with(PAGE)
# Older libraries lack what some families need, or write the same model in another way.
OLDER = any(here < MADE_WITH[library] for library, here in made_with(page([])).items())


@pytest.mark.parametrize("name", EACH)
def test_every_method_works_or_refuses_as_the_page_says(name):
    family = EACH[name]
    if not is_installed(family) or (OLDER and not family.kind):
        pytest.skip("older libraries")
    row = row_of(family, None if family.kind else list(EACH).index(name))
    assert row.failed == ()
    assert {m: v.failed for m, v in row.verdicts.items() if v.failed} == {}
    if not OLDER:
        assert differences(page([row]), PAGE) == []
    if family.kind:
        refused = {method for method, verdict in row.verdicts.items() if verdict.refused}
        without_head = {"LeGrad"} if name in WITHOUT_ONE_HEAD else set()
        assert refused == REFUSED.get(name, set()) | without_head


def test_each_library_has_its_representatives():
    assert {family.library for family in representatives()} == {"timm", "Transformers", "torch.nn"}
    assert len(FAMILIES) >= 70


def test_failures_and_refusals_are_shown():
    verdicts = dict.fromkeys(METHODS, Verdict())
    verdicts["AttnLRP"] = Verdict(refused="No rule for `f` on tensors of shapes [(2, 3)]: why.")
    verdicts["RawAttention"] = Verdict(failed=("is all zero",))
    verdicts["PartialLRP"] = Verdict(warned=("1 of 3 attention calls are among channels.",))
    row = Row(("timm", "ViT"), (2, 1), ["x"], ["4"], ("the output changes",), verdicts)
    text = page([row, row])
    assert (
        "| timm ViT ✗ | 2 + 1 | 4 | x | ✓ | ✓ | ✓ | ✓ | ✗ | ✓ | ✓ a | ✓ | [1] | ✓ | ✓ | ✓ |" in text
    )
    assert text.count("\n1. No rule for `f`: why.\n") == 1
    assert text.count("\n- a: Some attention calls are among channels.\n") == 1
    assert "- timm ViT, RawAttention: is all zero." in text
    assert "- timm ViT: the output changes." in text


def test_a_page_is_compared_with_another():
    def row(failed=(), **verdicts):
        verdicts = {method: Verdict() for method in METHODS} | verdicts
        return Row(("timm", "ViT"), (2, 0), ["x"], ["4"], failed, verdicts)

    works, refused = page([row()]), page([row(AttnLRP=Verdict(refused="Why."))])
    failed = page([row(AttnLRP=Verdict(failed=("is all zero",)))])
    assert differences(works, works) == differences(refused, refused) == []
    assert differences(refused, works) == ["timm ViT, AttnLRP: refused: Why., was works"]
    of_older = re.sub(r"timm \d", "timm 0", works)
    assert differences(refused, of_older) == ["timm ViT, AttnLRP: refused, was works"]
    assert differences(failed, failed) == ["timm ViT, AttnLRP: failed, was failed"]
    everything_else = page([row(failed=("the output changes",))])
    assert len(differences(everything_else, works)) == len(METHODS)
    assert len(differences(works, re.sub(r"timm \d", "timm 0", page([])))) == len(METHODS)


def test_texts_count_where_the_same_libraries_made_both_pages():
    def of(refused="Why.", warned="How.", calls=2):
        verdicts = dict.fromkeys(METHODS, Verdict())
        changed = {"AttnLRP": Verdict(refused=refused), "GIM": Verdict(warned=(warned,))}
        return page([Row(("timm", "ViT"), (calls, 0), ["x"], ["4"], (), verdicts | changed)])

    for other, said in (
        (of(refused="Because."), "AttnLRP: refused: Because., was refused: Why."),
        (of(warned="Somehow."), "GIM: works: Somehow., was works: How."),
        (of(calls=3), "calls: 3, was 2"),
    ):
        assert differences(other, of()) == [f"timm ViT, {said}"]
        assert differences(other, re.sub(r"timm \d", "timm 0", of())) == []


def test_the_page_has_a_row_for_every_family():
    rows = re.findall(r"^\| (\S+ [^|]*?)(?: ✗)? \| \d", PAGE, re.MULTILINE)
    assert rows == [f"{family.library} {family.name}" for family in FAMILIES]


def test_older_libraries_leave_families_out():
    assert sum(map(is_installed, FAMILIES)) >= 70
