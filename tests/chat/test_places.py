"""The values that a processor makes of a picture are traced back to their places in it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image, to_tensor

from captum_transformer.visualization.places import places_of
from tests.chat.kit import Kit, picture
from tests.chat.kits import SEEING, qwen2_5_vl

SIZES = [[(48, 24)], [(40, 60), (64, 64), (33, 21)]]


@pytest.mark.parametrize("sizes", SIZES, ids=["one", "three"])
@pytest.mark.parametrize("make", SEEING)
def test_a_square_is_found_where_it_is_in_the_picture(
    make: Callable[[], Kit], sizes: list[tuple[int, int]]
) -> None:
    process = make().pixels
    black = [Image.new("RGB", size) for size in sizes]
    places = places_of(process, [picture(*size) for size in sizes])
    for number, (width, height) in enumerate(sizes):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[height // 2 : 3 * height // 4, width // 4 : width // 2] = 255
        shown = [*black[:number], Image.fromarray(pixels), *black[number + 1 :]]
        change = (process(shown) - process(black)).abs()

        maps = places.maps(change, [(8, 8)] * len(sizes))

        total = sum(float(each.sum()) for each in maps)
        assert total == pytest.approx(float(change.sum()), rel=1e-4)
        # Interpolation spreads some of it beyond the edges.
        assert float(maps[number][4:6, 2:4].sum()) > 0.85 * total


def test_cropped_pixels_and_padding_have_no_place() -> None:
    def process(pictures: list[Any]) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack([np.array(each) for each in pictures])).float()
        cropped = pixels.permute(0, 3, 1, 2)[..., 2:] / 255
        return torch.nn.functional.pad((cropped - 0.5) / 0.2, (0, 3))

    places = places_of(process, [picture(8, 4), picture(8, 4, 1)])

    assert (places.picture[..., 6:] == -1).all()
    assert (places.picture[1, ..., :6] == 1).all()
    first, second = places.maps(torch.ones(5, 2, 3, 4, 9), [(4, 8), (1, 1)])
    assert first.shape == (5, 4, 8)
    assert (first[..., :2] == 0).all()
    assert (first[..., 2:] == 3).all()
    assert (second == 6 * 4 * 3).all()
    assert places.resolution(0) == (4, 8)


STEPS: dict[str, Callable[[Any], Any]] = {
    "a random crop": transforms.RandomResizedCrop(32),
    "a random flip": transforms.RandomHorizontalFlip(),
    "linear light": lambda pixels: pixels**2.2,
    "limits": lambda pixels: pixels.clamp(0.2, 0.8),
    "its own range": lambda pixels: (pixels - pixels.min()) / (pixels.max() - pixels.min() + 1e-9),
    "its own deviation": lambda pixels: (pixels - pixels.mean()) / (pixels.std() + 1e-9),
    "another shape": lambda pixels: pixels[:, : 1 + int(pixels.max() * 20)],
    "other colours": lambda pixels: to_tensor(to_pil_image(pixels).convert("HSV")),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_processor_without_a_place_for_each_value_is_refused(
    step: Callable[[Any], Any],
) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="unknown from which places in the picture"):
        places_of(
            lambda pictures: torch.cat([step(to_tensor(each)).flatten() for each in pictures]),
            [picture(60, 40), picture(60, 40, 1)],
        )


@pytest.mark.parametrize("how", list(transforms.InterpolationMode)[:3])
def test_the_resolution_is_that_of_the_input(how: Any) -> None:
    resize = transforms.Resize((30, 20), how)
    places = places_of(
        lambda pictures: torch.stack([to_tensor(resize(each)) for each in pictures]),
        [picture(60, 40)],
    )
    assert places.resolution(0) == pytest.approx((30, 20), rel=0.1)
    # Each cell has something.
    [found] = places.maps(torch.ones(1, 3, 30, 20), [places.resolution(0)])
    assert (found > 0).all()


def test_more_pictures_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 100 pictures at a time, got 101"):
        places_of(lambda pictures: torch.zeros(len(pictures)), [picture(4, 4)] * 101)


def test_a_square_is_found_in_its_frame_of_a_video() -> None:
    process = qwen2_5_vl().processor.video_processor
    black = [Image.new("RGB", (32, 16))] * 4
    white = np.zeros((16, 32, 3), np.uint8)
    white[8:12, 8:16] = 255

    def made(frames: list[Any]) -> torch.Tensor:
        found = process(videos=[frames], do_sample_frames=False, return_tensors="pt")
        return found["pixel_values_videos"]

    places = places_of(made, [picture(32, 16, seed) for seed in range(4)])
    change = (made([*black[:2], Image.fromarray(white), black[3]]) - made(black)).abs()
    maps = torch.stack(places.maps(change, [(4, 8)] * 4))
    assert float(maps[2, 2, 2:4].sum()) > 0.85 * float(change.sum())


def test_a_picture_that_its_metadata_rotates_keeps_its_places() -> None:
    turned = picture(6, 4)
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter
    turned.info["exif"] = exif.tobytes()

    def process(pictures: list[Any]) -> torch.Tensor:
        return torch.stack([to_tensor(ImageOps.exif_transpose(each)) for each in pictures])

    places = places_of(process, [turned])
    white = np.zeros((4, 6, 3), np.uint8)
    white[3, 0] = 255
    shown = Image.fromarray(white)
    shown.info["exif"] = turned.info["exif"]
    [found] = places.maps(process([shown]), [(4, 6)])
    assert found.shape == (4, 6)
    assert found[3, 0] == found.sum() == 3
