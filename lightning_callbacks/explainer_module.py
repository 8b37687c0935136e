"""A Lightning module whose prediction is an explanation."""

from __future__ import annotations

from lightning_callbacks.data_sets.explaining import Explaining
from lightning_callbacks.shared.flavors import LightningModule, OtherLightningModule


class ExplainerModule(Explaining, LightningModule):
    """Explains the batches of `Trainer.predict`.

    With `lightning_callbacks.RelevanceWriter` as a callback, the explanations of a whole
    data set are written to disk, on all devices and nodes of the trainer. The hooks of
    a Lightning module or a data module that prepare batches, such as `on_after_batch_transfer`,
    are also applied to the batches that are explained.

    It is a module of ``pytorch_lightning``, or of ``lightning.pytorch`` if only that is installed.
    If both are installed and the trainer is from ``lightning.pytorch``, use
    `LightningExplainerModule`.

    Args:
        model: The model. It is in evaluation mode while it is explained.
        method: Creates the method: any callable that takes the model and returns a Captum
            ``Attribution``, such as the method's class.
        target: What is explained for each sample: ``"predicted"``, ``"label"`` or a class id, as in
            `AttributionMonitor`.
        tokens: Explain the model's tokens instead of its inputs, with ``attribute_tokens``: an
            image of 224 x 224 pixels becomes 196 values instead of 150528.
        batch_to_inputs: Reads ``(inputs, labels)`` or ``(inputs, labels, further)`` from a batch,
            as in `AttributionMonitor`.
        captured: Whether batches with a shape that has occurred before are explained with a graph.
            Results are the same to the last bit. This pays off for small
            models and on fast devices, if dozens of batches have one shape.
        seed: The seed of the random number generators for each batch, for random methods.

    Raises:
        MisconfigurationException: If an argument is invalid.

    Example:
        >>> import timm
        >>> import torch
        >>> from captum_transformer import AttnLRP
        >>> model = timm.create_model("test_vit", num_classes=10)
        >>> module = ExplainerModule(model, AttnLRP, tokens=True)
        >>> module.predict_step(torch.rand(2, 3, 160, 160), 0).attributions["input_0"].shape
        torch.Size([2, 100])
    """


class LightningExplainerModule(Explaining, OtherLightningModule):
    """`ExplainerModule` for a trainer of ``lightning.pytorch``, if both are installed."""
