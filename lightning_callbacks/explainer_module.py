"""A Lightning module whose prediction is an explanation."""

from __future__ import annotations

from lightning_callbacks.data_sets.explaining import Explaining
from lightning_callbacks.shared.flavors import LightningModule, OtherLightningModule


class ExplainerModule(Explaining, LightningModule):
    """Explains the batches of `Trainer.predict`.

    With a `lightning_callbacks.RelevanceWriter` among the callbacks the explanations of a whole
    data set are written to disk, on as many devices and nodes as the trainer has. The hooks with
    which a Lightning module or a data module prepares batches, such as `on_after_batch_transfer`,
    prepare those that are explained, too.

    It is a module of ``pytorch_lightning``, or of ``lightning.pytorch`` if only that is installed.
    Where both are and the trainer is one of ``lightning.pytorch``, take `LightningExplainerModule`.

    Args:
        model: The model. It is in evaluation mode while it is explained.
        method: Makes the method: any callable that takes the model and returns a Captum
            ``Attribution``, such as the method's class.
        target: What is explained of each sample: ``"predicted"``, ``"label"`` or a class id, as in
            `AttributionMonitor`.
        tokens: Explain the model's tokens instead of its inputs, with ``attribute_tokens``: an
            image of 224 x 224 pixels becomes 196 values instead of 150528.
        batch_to_inputs: Reads ``(inputs, labels)`` or ``(inputs, labels, further)`` from a batch,
            as in `AttributionMonitor`.
        seed: Where the random number generators start at each batch, for random methods.

    Raises:
        MisconfigurationException: If an argument has no meaning.

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
    """`ExplainerModule` for a trainer of ``lightning.pytorch``, where both Lightnings are there."""
