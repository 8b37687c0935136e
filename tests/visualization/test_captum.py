"""Pictures of Captum show our attributions, and our pictures those of Captum."""

import numpy as np
import timm
import torch
from captum.attr import InputXGradient
from captum.attr import visualization as captum_pictures

from captum_transformer import ConservativeLRP
from captum_transformer.visualization import (
    SIGNED_CMAP,
    image_grid,
    merge_words,
    overlay,
    to_map,
)


def test_our_attributions_and_colours_go_into_captums_pictures():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, num_classes=4).eval()
    image = torch.rand(1, 3, 32, 32)
    attr = ConservativeLRP(model).attribute(image, target=2)[0]
    _, axes = captum_pictures.visualize_image_attr(
        attr.permute(1, 2, 0).numpy(),
        image[0].permute(1, 2, 0).numpy(),
        method="heat_map",
        sign="all",
        outlier_perc=0,
        cmap=SIGNED_CMAP,
        use_pyplot=False,
    )
    (shown,) = axes.images
    # Both mean the same by one value per pixel.
    ours = to_map(attr)
    np.testing.assert_allclose(shown.get_array(), ours / ours.abs().max(), atol=1e-5)
    assert shown.get_cmap() == SIGNED_CMAP


def test_captums_attributions_go_into_our_pictures():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, num_classes=4).eval()
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    attr = InputXGradient(model).attribute(image, target=2)[0]
    figure = image_grid(image[0], {"InputXGradient": attr})
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), overlay(image[0], attr))


def test_merged_words_go_into_captums_records():
    words, values = merge_words(
        ["un", "##fair", "film"], torch.tensor([0.5, 0.25, -0.75]), [(0, 2), (2, 6), (7, 11)],
        "unfair film",
    )  # fmt: skip
    record = captum_pictures.VisualizationDataRecord(values, 0.9, 1, 1, 1, 0.0, words, 0.0)
    html = captum_pictures.format_word_importances(record.raw_input_ids, record.word_attributions)
    assert html.count("<mark") == 2
    assert "unfair" in html
