"""Captum's own tools run on the methods and on their real output."""

from dataclasses import replace
from functools import partial
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from captum.attr import GradientAttribution, InputXGradient, NoiseTunnel
from captum.attr import visualization as viz
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from captum_transformer import ConservativeLRP
from tests.attr.subjects import METHODS, assert_close, attributed, subject

mpl.use("Agg")


@pytest.mark.parametrize("method", METHODS)
def test_is_a_gradient_attribution(method: str) -> None:
    explain = METHODS[method](subject("timm ViT").model)

    assert isinstance(explain, GradientAttribution)
    assert explain.has_convergence_delta() == isinstance(explain, ConservativeLRP)
    assert explain.get_name() == type(explain).__name__ or " " in explain.get_name()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel(kind: str, method: str) -> None:
    given = subject("timm ViT")
    target = torch.tensor(given.target)
    explain, attribute = METHODS[method](given.model), METHODS[method](given.model).attribute
    maps: list[Tensor] = []

    def noted(_: Any, noisy: Tensor, **named: Any) -> Any:
        maps.extend(attribute(x, target) for x in noisy.unflatten(0, (3, -1)).unbind(1))
        return attribute(noisy, **named)

    explain.attribute = partial(noted, explain)  # type: ignore[method-assign]
    explain.attribute.__wrapped__ = noted  # Captum calls what its logging wraps
    result = NoiseTunnel(explain).attribute(
        given.inputs,
        nt_type=kind,
        nt_samples=4,
        nt_samples_batch_size=2,
        stdevs=0.1,
        target=target,
    )

    mean, squares = (torch.stack([m**power for m in maps]).mean(0) for power in (1, 2))
    expected = {"smoothgrad": mean, "smoothgrad_sq": squares, "vargrad": squares - mean**2}
    assert len(maps) == 4
    assert_close(result, expected[kind], relative=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_noise_tunnel_without_noise_changes_nothing(method: str) -> None:
    given = subject("timm ViT")

    result = NoiseTunnel(METHODS[method](given.model)).attribute(
        given.inputs, nt_samples=2, stdevs=0.0, target=torch.tensor(given.target)
    )

    assert_close(result, attributed("timm ViT", method))


def test_noise_tunnel_with_convergence_delta() -> None:
    given = subject("timm ViT")

    result, delta = NoiseTunnel(ConservativeLRP(given.model)).attribute(
        given.inputs, nt_samples=2, stdevs=0.1, target=1, return_convergence_delta=True
    )

    assert result.shape == given.inputs.shape
    assert delta.numel() == 2 * len(given.inputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm ViT", "nn.TransformerEncoder"])
def test_infidelity(name: str, method: str) -> None:
    given = subject(name)
    (attribution,) = attributed(name, method)
    errors = []

    def perturbed(repeated: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(repeated)
        for of_each in noise.unflatten(0, (3, -1)).unbind(1):
            before, after = (
                given.model(x, *(given.extra or ()))[range(3), given.target]
                for x in (given.inputs, given.inputs - of_each)
            )
            errors.append((attribution * of_each).flatten(1).sum(1) - (before - after))
        return noise, repeated - noise

    result = infidelity(
        given.model,
        perturbed,
        given.inputs,
        attribution,
        target=torch.tensor(given.target),
        additional_forward_args=given.extra,
        n_perturb_samples=3,
    )

    assert_close(result, torch.stack(errors).square().mean(0).detach())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm ViT", "nn.TransformerEncoder"])
def test_sensitivity(name: str, method: str) -> None:
    given = subject(name)
    (attribution,) = attributed(name, method)
    changes = []

    def perturbed(repeated: Tensor) -> Tensor:
        moved = repeated + 0.02 * torch.rand_like(repeated)
        for x in moved.unflatten(0, (3, -1)).unbind(1):
            change = replace(given, inputs=x).attribute(METHODS[method]) - attribution
            changes.append(change.flatten(1).norm(dim=1))
        return moved

    result = sensitivity_max(
        METHODS[method](given.model).attribute,
        given.inputs,
        perturbed,
        n_perturb_samples=2,
        target=torch.tensor(given.target),
        additional_forward_args=given.extra,
    )

    length = attribution.flatten(1).norm(dim=1)
    length[length == 0] = 1  # as Captum does, for maps of GradCAM that are clipped to zero
    assert_close(result, torch.stack(changes).amax(0) / length, relative=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_visualize_image_attr(method: str) -> None:
    given = subject("timm ViT")
    (attribution,) = attributed("timm ViT", method)
    sample = next(i for i in range(3) if attribution[i].any())
    image = given.inputs[sample].permute(1, 2, 0).numpy()
    heat = attribution[sample].permute(1, 2, 0).numpy()

    figure, axis = plt.subplots()
    shown = viz.visualize_image_attr(
        heat,
        (image - image.min()) / np.ptp(image),
        method="blended_heat_map",
        sign="all",
        plt_fig_axis=(figure, axis),
        use_pyplot=False,
    )

    assert shown == (figure, axis)
    overlay = axis.images[-1].get_array()
    assert overlay.shape == (8, 12)
    assert np.ptp(overlay) > 0
    figure.canvas.draw()
    plt.close(figure)


def test_gradient_times_input_is_captums() -> None:
    given = subject("timm ViT")
    inputs = given.inputs.clone().requires_grad_()
    expected = InputXGradient(given.model).attribute(inputs, target=given.target)

    assert_close(attributed("timm ViT", "gradient x input"), expected.detach())


def test_methods_take_the_forward_function_later() -> None:
    """As Captum's own tools do that wrap a method."""
    first, second = subject("timm ViT"), subject("timm ViT, registers")

    def half(pixels: Tensor) -> Tensor:
        return second.model(pixels)

    explain = METHODS["GenericAttentionRelevance"](first.model)
    explain.forward_func = half
    assert_close(
        explain.attribute(second.inputs, second.target),
        attributed("timm ViT, registers", "GenericAttentionRelevance"),
        relative=0,
    )
