"""What is timed: our methods, and those of Captum, pytorch-grad-cam and LXT on the same model."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.cost.subjects import Subject
from captum_transformer import (
    GIM,
    AttentionGradCam,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LeGrad,
    LibraGrad,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer.calling.arguments import Arguments
from captum_transformer.rules import flow
from captum_transformer.trace import traced_forward

REFERENCE = "forward + backward"
FORWARD = "forward"
NOOP = "forward under a mode that does nothing"
TRACED = "forward under the trace"
METHODS = {
    "TransformerAttribution": TransformerAttribution,
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "ConservativeLRP": ConservativeLRP,
    "AttnLRP": AttnLRP,
    "AttnLRP, gamma": partial(AttnLRP, gamma=0.05, conv_gamma=100.0),
    "GIM": GIM,
    "LibraGrad": LibraGrad,
    "LeGrad": LeGrad,
    "AttentionGradCam": AttentionGradCam,
    "PartialLRP": PartialLRP,
    "Full LRP": partial(TransformerAttribution, propagate_to_input=True),
    "RawAttention": RawAttention,
    "AttentionRollout": AttentionRollout,
}
LXT = "LXT's AttnLRP"
INTEGRATION_STEPS = 50
INTEGRATED = f"Captum IntegratedGradients, {INTEGRATION_STEPS} steps"

Run = Callable[[], Any]


def forward_and_backward(subject: Subject) -> Tensor:
    """The least that a gradient costs: the model's own forward pass, and back to the input."""
    features = subject.features.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(subject.run(features)[:, 0].sum(), features)
    return gradient


def forward(subject: Subject) -> Tensor:
    """A forward pass that could be differentiated."""
    return subject.run(subject.features.detach().requires_grad_())


def forward_under_the_trace(subject: Subject) -> int:
    """The same, written down."""
    with traced_forward(subject.run, Arguments(subject.features), keep=flow.KEEP) as traced:
        return len(traced.calls)


class _Nothing(TorchFunctionMode):
    """What any interception of torch functions costs."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def forward_under_no_trace(subject: Subject) -> Tensor:
    """The same under a mode that lets everything pass."""
    with _Nothing():
        return forward(subject)


def ours(subject: Subject) -> dict[str, Run]:
    return {
        name: partial(method(subject.model).attribute, subject.inputs, target=subject.target)
        for name, method in METHODS.items()
    }


def others(subject: Subject) -> dict[str, Run]:
    """Methods of other packages that leave the model's class as it is."""
    by_gradient = InputXGradient(subject.run)
    runs: dict[str, Run] = {
        "Captum InputXGradient": partial(by_gradient.attribute, subject.features, target=0),
        "Captum LayerGradCam": partial(
            LayerGradCam(subject.run, subject.last_norm).attribute, subject.features, target=0
        ),
    }
    if importlib.util.find_spec("pytorch_grad_cam") and subject.features is subject.inputs:
        runs["pytorch-grad-cam GradCAM"] = _grad_cam(subject)
    return runs


def integrated_gradients(subject: Subject) -> Run:
    """Takes fifty times as long as a gradient, so it is timed apart."""
    method = IntegratedGradients(subject.run)
    return partial(
        method.attribute,
        subject.features,
        target=0,
        n_steps=INTEGRATION_STEPS,
        internal_batch_size=len(subject.features),
    )


def _grad_cam(subject: Subject) -> Run:
    grad_cam = importlib.import_module("pytorch_grad_cam")
    targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")

    def as_image(tokens: Tensor) -> Tensor:
        if tokens.ndim == 4:
            return tokens.permute(0, 3, 1, 2)
        patches = tokens[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        return patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)

    def run() -> Any:
        # Made anew, as its hooks would take part in what else is timed.
        layers = [subject.last_norm]
        with grad_cam.GradCAM(subject.model, layers, reshape_transform=as_image) as method:
            chosen = [targets.ClassifierOutputTarget(0)] * len(subject.inputs)
            return method(subject.inputs, chosen)

    return run


def patched_by_lxt(subject: Subject) -> Run | str:
    """LXT's gradient x input on the model, whose classes it changes for the rest of the process.

    Returns:
        What to time, or why there is nothing.
    """
    if not importlib.util.find_spec("lxt"):
        return "not installed"
    try:
        efficient = importlib.import_module("lxt.efficient")
    except ImportError as reason:
        return f"does not import with these versions ({reason})"
    module = importlib.import_module(type(subject.model).__module__)
    try:
        with warnings.catch_warnings():
            # It warns of what it has patched before.
            warnings.simplefilter("ignore")
            efficient.monkey_patch(module)
    except Exception as reason:
        return f"does not patch {module.__name__} ({reason})"

    def run() -> Tensor:
        features = subject.features.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(subject.run(features)[:, 0].sum(), features)
        return features * gradient

    return run
