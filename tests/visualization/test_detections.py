"""Boxes are drawn on the image and on their maps."""

import pytest
import torch

from captum_transformer.visualization import detections
from tests.visualization.frames import IMAGE


def test_boxes_are_drawn_at_their_pixels():
    box = torch.tensor([[2.0, 4.0, 12.0, 10.0]])
    figure = detections(IMAGE, box, [torch.rand(4, 6)], ["cat"])
    for axes in figure.axes:
        (patch,) = axes.patches
        # Pixel 2 begins half a pixel left of its centre.
        assert patch.get_bbox().bounds == (1.5, 3.5, 10.0, 6.0)


@pytest.mark.parametrize(
    "box", [[0.1, 0.2, 0.5, 0.6], [12, 4, 2, 10], [30, 2, 40, 8], [2, float("nan"), 4, 5]]
)
def test_boxes_outside_of_the_image_are_refused(box):
    with pytest.raises(ValueError, match="in pixels of an image of 24 x 16"):
        detections(IMAGE, torch.tensor([box]), [torch.rand(4, 6)], ["cat"])


def test_each_box_has_its_map_and_label():
    boxes = torch.tensor([[2.0, 4.0, 12.0, 10.0]])
    with pytest.raises(ValueError, match="2 labels need boxes"):
        detections(IMAGE, boxes, [torch.rand(4, 6)], ["cat", "dog"])


def test_many_boxes_wrap_to_rows():
    boxes = torch.tensor([[2.0, 4.0, 12.0, 10.0]]).repeat(6, 1)
    figure = detections(IMAGE, boxes, torch.rand(6, 4, 6), list("abcdef"), columns=4, scale=1.0)
    assert len(figure.axes) == 1 + 6 + 1  # the image, the boxes and the colour bar
