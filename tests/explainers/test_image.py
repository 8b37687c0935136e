"""Explained pictures: a map lies where the picture has what is due to it."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from captum_transformer import GenericAttentionRelevance, TransformerAttribution
from captum_transformer.errors import InvalidInputError, InvalidTargetError
from captum_transformer.explainers import ImageExplainer
from captum_transformer.visualization import overlay

NAMES = ["cat", "dog", "bird"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", img_size=32, num_classes=3)
    torch.nn.init.normal_(vit.head.weight)
    return vit.train()


@pytest.fixture(scope="module")
def transform():
    """The middle square, as timm prepares pictures."""
    return timm.data.create_transform((3, 32, 32), crop_pct=1.0)


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class Marks:
    """A method whose relevance is known: one in a part of the model's input."""

    def __init__(self, forward, rows, columns):
        self.rows, self.columns = rows, columns

    def attribute(self, inputs, additional_forward_kwargs=None):
        relevance = torch.zeros_like(inputs)
        relevance[..., self.rows, self.columns] = 1
        return relevance


def marking(rows, columns):
    return lambda forward: Marks(forward, rows, columns)


def test_a_class_as_the_method_by_itself_explains_it(model, transform, picture):
    explainer = ImageExplainer(model, transform, GenericAttentionRelevance, names=NAMES)
    explained = explainer(picture, target="dog")
    by_hand = GenericAttentionRelevance(model).attribute(transform(picture)[None], target=1)[0]
    torch.testing.assert_close(explained.relevance, by_hand, rtol=1e-5, atol=1e-8)
    assert (explained.label, explained.target) == ("dog (1)", 1)
    model.eval()
    with torch.no_grad():
        scores = model(transform(picture)[None])[0]
    model.train()
    assert explained.score == pytest.approx(float(scores[1]), rel=1e-5)
    assert explained.probability is None
    assert ImageExplainer(model, transform)(picture).target == int(scores.argmax())


def test_a_map_lies_on_the_picture_as_it_was_given(model, transform, picture):
    # The upper left quarter of what the model sees, which is the square in the middle.
    explained = ImageExplainer(model, transform, marking(slice(0, 16), slice(0, 16)))(picture)
    height, width = explained.map.shape
    assert (explained.picture.size, explained.grid) == ((100, 60), (2, 2))
    rows = explained.map.sum(1) > 0
    columns = explained.map.sum(0) > 0
    centre_of_row = (torch.arange(height)[rows].float().mean() + 0.5) / height * 60
    centre_of_column = (torch.arange(width)[columns].float().mean() + 0.5) / width * 100
    # Pixels 0 to 30 of the rows, and about 19 to 49 of the columns: 10 of 53 are cut off.
    assert abs(float(centre_of_row) - 15) < 1
    assert abs(float(centre_of_column) - 34) < 1
    inside = explained.map[rows][:, columns][1:-1, 1:-1]
    assert float(inside.min()) == pytest.approx(float(inside.max()), rel=1e-5)


@pytest.mark.parametrize("size", [(640, 427), (333, 500), (90, 1000), (40, 40)])
@pytest.mark.parametrize("side", [32, 224])
def test_a_map_has_no_holes(size, side):
    vit = timm.create_model("test_vit", img_size=side, num_classes=3)
    transform = timm.data.create_transform((3, side, side), crop_pct=0.9)
    everywhere = marking(slice(None), slice(None))
    found = ImageExplainer(vit, transform, everywhere)(Image.new("RGB", size), target=0).map
    rows, columns = (found.sum(dim).nonzero() for dim in (1, 0))
    seen = found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert float(seen.min()) == pytest.approx(float(seen.max()), rel=1e-4)


def test_patches_are_shown_by_their_sums(model, transform, picture):
    checkerboard = marking(slice(0, 16, 2), slice(0, 16, 2))
    explained = ImageExplainer(model, transform, checkerboard)(picture)
    assert torch.unique(explained.relevance).tolist() == [0, 1]
    # A quarter of the patch's 16 x 16 pixels are one, in three channels.
    shown = explained.map[explained.map > 0]
    assert float(shown.max()) == pytest.approx(192, rel=1e-5)
    assert float(shown.median()) == pytest.approx(192, rel=1e-5)


def test_a_drawing_says_that_patches_are_summed(model, transform, picture):
    explained = ImageExplainer(model, transform)(picture, target=1)
    of_pixels = replace(explained, grid=None)
    assert len(explained.draw()) > len(of_pixels.draw())  # a line below the picture


def test_the_default_is_what_the_study_supports(transform, model, picture):
    assert ImageExplainer(model, transform)(picture).method == "TransformerAttribution"


def test_a_model_of_transformers(picture):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=8, id2label=dict(enumerate(NAMES)),
        label2id={name: number for number, name in enumerate(NAMES)},
    )  # fmt: skip
    vit = ViTForImageClassification(config).eval()
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    explained = ImageExplainer(vit, processor)(picture, target="bird", rather_than="cat")
    assert explained.label == "bird (2) rather than cat (0)"
    assert explained.grid == (4, 4)
    assert 0 < ImageExplainer(vit, processor)(picture).probability < 1
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
    contrast = TransformerAttribution(lambda p: vit(p).logits[:, 2] - vit(p).logits[:, 0])
    assert explained.relevance.shape == contrast.attribute(pixels)[0].shape


def test_every_form_of_a_picture(model, transform, picture, tmp_path):
    explainer = ImageExplainer(model, transform, marking(slice(0, 8), slice(0, 8)))
    array = np.array(picture)
    picture.save(tmp_path / "picture.png")
    forms = [picture, array, torch.from_numpy(array).permute(2, 0, 1), tmp_path / "picture.png",
             str(tmp_path / "picture.png")]  # fmt: skip
    several = explainer(forms, target=[0, 1, 2, 0, 1])
    assert all(torch.equal(each.inputs, several[0].inputs) for each in several)
    assert [each.target for each in several] == [0, 1, 2, 0, 1]
    grey = explainer(array[..., 0], target=0)
    assert grey.picture.mode == "RGB"


def test_a_photo_that_was_taken_with_the_camera_held_upright(model, transform, picture, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "photo.png", exif=turned)
    explained = ImageExplainer(model, transform)(tmp_path / "photo.png", target=0)
    assert explained.picture.size == (60, 100)


def test_pictures_of_16_bits_and_transparent_ones(model, transform, tmp_path):
    explainer = ImageExplainer(model, transform)
    ramp = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    deep = Image.fromarray(ramp.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    for given in (deep, tmp_path / "deep.png"):
        shown = explainer(given, target=0).picture
        np.testing.assert_array_equal(np.asarray(shown)[..., 0], ramp)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (np.asarray(explainer(clear, target=0).picture) == 255).all()
    with pytest.raises(InvalidInputError, match="no known range"):
        explainer(Image.fromarray(ramp.astype(np.float32) / 255), target=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_any_precision(transform, picture, dtype):
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", img_size=32, num_classes=3)
    expected = ImageExplainer(vit, transform)(picture, target=0)
    found = ImageExplainer(vit.to(dtype), transform)(picture, target=0)
    assert found.relevance.dtype == dtype
    assert found.score == pytest.approx(expected.score, rel=0.1, abs=0.05)


def test_label_names_of_the_weights_that_a_training_began_with(transform, picture):
    vit = timm.create_model("test_vit", img_size=32, num_classes=3)
    vit.pretrained_cfg["label_names"] = [f"old {number}" for number in range(1000)]
    assert ImageExplainer(vit, transform)(picture, target=1).label == "class 1"
    with pytest.raises(InvalidTargetError, match="No names of the model's classes"):
        ImageExplainer(vit, transform)(picture, target="old 1")
    with pytest.raises(InvalidInputError, match="gives 3 scores, and `names` has 2"):
        ImageExplainer(vit, transform, names=["cat", "dog"])(picture)


@pytest.mark.parametrize("given", [
    torch.rand(3, 8, 8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), 3, None,
])  # fmt: skip
def test_inputs_that_are_not_pictures_are_refused(model, transform, given):
    with pytest.raises(InvalidInputError, match=r"A picture must be.*uint8 values"):
        ImageExplainer(model, transform)(given, target=0)


def test_what_can_not_be_asked(model, transform, picture):
    explainer = ImageExplainer(model, transform, names=NAMES)
    with pytest.raises(InvalidTargetError, match="no class 3: the model has 3"):
        explainer(picture, target=3)
    with pytest.raises(InvalidInputError, match="2 pictures and 1 targets"):
        explainer([picture, picture], target=[0])
    at_random = transforms.Compose([transforms.RandomCrop(32), transforms.ToTensor()])
    with pytest.raises(ValueError, match="crop at random"):
        ImageExplainer(model, at_random)(picture, target=0)
    crops = transforms.Compose(
        [
            transforms.FiveCrop(32),
            lambda crops: torch.stack([transforms.ToTensor()(c) for c in crops]),
        ]
    )
    with pytest.raises(InvalidInputError, match="must return one image"):
        ImageExplainer(model, crops)(picture, target=0)


def test_a_bar_over_several_pictures(model, transform, picture, capsys):
    ImageExplainer(model, transform)([picture, picture], target=0, show_progress=True)
    assert "ImageExplainer attribution: 100%" in capsys.readouterr().err


def test_an_explained_image_is_drawn(model, transform, picture):
    explained = ImageExplainer(model, transform)(picture, target=0)
    assert explained.draw(height=60).shape[0] > 60
    assert explained._repr_png_().startswith(b"\x89PNG")


def test_an_overlay_takes_any_picture_and_any_map():
    array = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    image = torch.from_numpy(array).permute(2, 0, 1)
    values = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    drawn = overlay(image, values)
    for same in (array, Image.fromarray(array), array[::-1][::-1]):
        assert np.array_equal(overlay(same, values), drawn)
    bare = overlay(image, torch.zeros(2, 3))
    changed = (drawn != bare).any(2)
    assert changed[:15, :17].all()
    assert not changed[15:].any()
    assert not changed[:, 17:].any()
    # A finer map is averaged: what is drawn keeps its mean.
    finer = torch.rand(61, 99)
    assert overlay(image, finer).shape == (30, 50, 3)
