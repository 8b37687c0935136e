"""Spectrograms and frames of videos are drawn with their relevance."""

import numpy as np
import pytest
import torch

from captum_transformer.visualization import overlay, spectrogram, video_frames
from tests.visualization.frames import drawn


def test_a_moment_of_a_spectrogram_keeps_its_sum():
    moments = torch.tensor([1.0, -2.0])
    figure = spectrogram(torch.randn(5, 8), moments, seconds=4.0)
    (up, down) = (patch.get_data().values for patch in figure.axes[1].patches)
    heights = up + down
    assert heights[0] > 0 > heights[-1]
    # A step's height is relevance per second, so its area is the relevance.
    np.testing.assert_allclose(heights.reshape(2, 4).sum(1) * 0.5, [1, -2], rtol=1e-5)


def test_a_wave_has_its_spectrogram():
    rate, length = 1000, 3000
    time = torch.arange(length) / rate
    wave = torch.sin(2 * torch.pi * 250 * time)
    values = torch.zeros(length)
    values[1500] = 2.0
    figure = spectrogram(wave, values, sample_rate=rate)
    shown = figure.axes[0].images[0]
    assert shown.get_extent() == pytest.approx([0, 3, 0, 0.5])
    # A tone of 250 Hz is a line half way up.
    assert abs(drawn(figure.axes[0])[..., 0].mean(1).argmax() - 64) <= 1
    up = figure.axes[1].patches[0].get_data()
    peak = up.values.argmax()
    assert up.edges[peak] <= 1.5 <= up.edges[peak + 1]
    assert up.values.sum() * (up.edges[1] - up.edges[0]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("sound", "values", "message"),
    [
        (torch.rand(8), torch.rand(8), "sample_rate"),
        (torch.rand(4, 8), torch.rand(3), "t divides 8"),
        (torch.rand(4, 8), torch.rand(3, 8), "b divides 4"),
        (torch.rand(2, 4, 8), torch.rand(4, 8), "one sample at a time"),
    ],
)
def test_sounds_that_do_not_fit_are_refused(sound, values, message):
    with pytest.raises(ValueError, match=message):
        spectrogram(sound, values)


def test_all_frames_of_a_video_have_one_scale_and_one_brightness():
    video = torch.stack([torch.full((3, 8, 8), level) for level in (0.0, 0.25, 0.5, 1.0)])
    tubes = torch.tensor([0.5, 2.0])[:, None, None].expand(2, 4, 4)
    figure = video_frames(video, tubes, quantile=1.0)
    frames = np.array(figure.axes[:8]).reshape(2, 4)
    assert [int(drawn(frame)[0, 0, 0]) for frame in frames[0]] == [0, 64, 128, 255]
    np.testing.assert_array_equal(
        drawn(frames[1, 1]),
        overlay((video[1] * 255).round().to(torch.uint8), tubes[0], scale=2.0),
    )


def test_a_video_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(T, C, H, W\)"):
        video_frames(torch.rand(3, 8, 8), torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="t divides 6"):
        video_frames(torch.rand(6, 3, 8, 8), torch.rand(4, 8, 8))
