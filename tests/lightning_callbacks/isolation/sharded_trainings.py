"""Trainings, predictions and ends of modules that FSDP2 shards among two processes."""

import importlib
import os
import signal
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, Saliency
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.data import DataLoader

from captum_transformer import AttnLRP, PartialLRP, TransformerAttribution
from lightning_callbacks import AttributionMonitor, RelevanceWriter
from tests.lightning_callbacks.explained import explainer, images
from tests.lightning_callbacks.isolation.test_bit_identity import Careless
from tests.lightning_callbacks.models import Blobs
from tests.lightning_callbacks.processes import side_by_side

CLASSES = 5
POLICIES = {
    "none": {},
    "bf16": {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32},
}


class Pixels(Blobs):
    """Images as large as the model's."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.repeat(1, 4, 4), label


def vit(seed=0):
    torch.manual_seed(seed)
    return timm.create_model("test_vit", num_classes=CLASSES, img_size=32)


def module_of(pl, policy=None, seed=0):
    """A module that shards itself; with no policy one that stays whole."""

    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = vit(seed)

        def configure_model(self):
            if policy is None or isinstance(self.model, FSDPModule):
                return
            options = {
                "mesh": self.device_mesh["data_parallel"],
                "mp_policy": MixedPrecisionPolicy(**POLICIES[policy]),
            }
            for block in self.model.blocks:
                fully_shard(block, **options)
            fully_shard(self.model, **options)

        def forward(self, x):
            return self.model(x)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]).float(), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", F.cross_entropy(self(batch[0]).float(), batch[1]))

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    return Classifier()


class Breaks(Saliency):
    """Fails in the middle of a forward pass, with the blocks before it through."""

    def attribute(self, inputs, **options):
        def fail(*_):
            raise RuntimeError("in the middle of a forward pass")

        hook = self.forward_func.model.blocks[-1].mlp.register_forward_hook(fail)
        try:
            return super().attribute(inputs, **options)
        finally:
            hook.remove()


class BreaksBackward(Saliency):
    """Fails in the middle of a backward pass."""

    def attribute(self, inputs, **options):
        def fail(*_):
            raise RuntimeError("in the middle of a backward pass")

        def watch(_, __, output):
            output.register_hook(fail)

        hook = self.forward_func.model.blocks[0].mlp.register_forward_hook(watch)
        try:
            return super().attribute(inputs, **options)
        finally:
            hook.remove()


class Dies(Saliency):
    """The process is gone, as one that the system has killed."""

    def attribute(self, inputs, **options):
        os.kill(os.getpid(), signal.SIGKILL)


METHODS = {
    "breaks": Breaks,
    "breaks backward": BreaksBackward,
    "saliency": Saliency,
    "integrated": IntegratedGradients,
    "careless": Careless,
    "chefer": TransformerAttribution,
    "attnlrp": AttnLRP,
    "partial": PartialLRP,
}


def kept(methods, maps):
    """The methods, which leave what they explained last in `maps`, beside the weights."""

    def keeping(name, factory):
        def make(module):
            # Not of the `state_dict`, before which FSDP2 shards the module again.
            weights = (*module.model.named_parameters(), *module.model.named_buffers())
            maps["weights"] = {name: tensor.detach().clone() for name, tensor in weights}
            method = factory(module)
            attribute = method.attribute

            def attribute_and_keep(*args, **options):
                result = attribute(*args, **options)
                values = result[0] if isinstance(result, tuple) else result
                given = args[0].detach().clone(), options["target"]
                maps[name] = (*given, values.detach().float().clone())
                return result

            method.attribute = attribute_and_keep
            return method

        return make

    return {name: keeping(name, factory) for name, factory in methods.items()}


def trainer_of(pl, folder, callbacks, **options):
    options.setdefault("max_epochs", 2)
    return pl.Trainer(
        accelerator="cpu",
        devices=2,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        callbacks=callbacks,
        **options,
    )


def strategy_of(pl, tensor_parallel=1):
    return pl.strategies.ModelParallelStrategy(
        2 // tensor_parallel, tensor_parallel, process_group_backend="gloo"
    )


def trained(rank, folder, policy, precision, methods, watched):
    """One process of a training, which leaves its weights, and those of all with the maps."""
    pl = importlib.import_module("pytorch_lightning")
    pl.seed_everything(7, verbose=False)
    maps = {}
    monitor = AttributionMonitor(
        kept({name: METHODS[name] for name in methods}, maps), num_samples=3
    )
    trainer = trainer_of(
        pl,
        folder,
        [monitor] if watched else [],
        strategy=strategy_of(pl),
        precision=precision,
        accumulate_grad_batches=2,
        val_check_interval=3,
        num_sanity_val_steps=0,
        logger=pl.loggers.TensorBoardLogger(folder, version=f"watched_{watched}"),
    )
    module = module_of(pl, policy)
    validation = DataLoader(Pixels(10, 2), batch_size=2)
    trainer.fit(module, DataLoader(Pixels(28, 1), batch_size=2), validation)
    shards = {name: p.to_local().clone() for name, p in module.named_parameters()}
    modes = [part.training for part in module.modules()]
    draws = torch.rand(3)
    torch.save(
        {"shards": shards, "maps": maps, "modes": modes, "draws": draws},
        Path(folder) / f"{watched}_{rank}.pt",
    )
    torch.distributed.destroy_process_group()


def train(folder, policy="none", precision="32-true", methods=tuple(METHODS)):
    """Trains with a monitor and without; to be run in a process of its own."""
    for watched in (True, False):
        side_by_side(trained, 2, str(folder), policy, precision, methods, watched)


def explained(rank, folder, out):
    """One process of a prediction."""
    pl = importlib.import_module("pytorch_lightning")
    module = explainer(pl, module_of(pl, "none").float(), TransformerAttribution)
    trainer = trainer_of(
        pl, folder, [RelevanceWriter(out)], strategy=strategy_of(pl), logger=False, max_epochs=None
    )
    # Five samples in batches of one: the processes have different numbers of them.
    data = [(pixels.float(), label) for pixels, label in list(images())[:5]]
    trainer.predict(module, DataLoader(data, batch_size=1), return_predictions=False)
    assert type(next(iter(module.parameters()))).__name__ == "DTensor"
    torch.distributed.destroy_process_group()


def explain(folder, out):
    """To be run in a process of its own."""
    side_by_side(explained, 2, str(folder), str(out))


def explained_in_vain(rank, folder):
    """One process of a prediction that fails."""
    pl = importlib.import_module("pytorch_lightning")
    module = explainer(pl, module_of(pl, "none"), Breaks)
    trainer = trainer_of(pl, folder, [], strategy=strategy_of(pl), logger=False, max_epochs=None)
    with pytest.raises(RuntimeError, match="in the middle"):
        trainer.predict(module, DataLoader(Pixels(4, 1)))
    assert type(next(iter(module.parameters()))).__name__ == "DTensor"
    torch.distributed.destroy_process_group()


def explain_in_vain(folder):
    """To be run in a process of its own."""
    side_by_side(explained_in_vain, 2, str(folder))


def refused(rank, folder):
    """One process of a training under tensor parallelism."""
    pl = importlib.import_module("pytorch_lightning")
    monitor = AttributionMonitor({"saliency": Saliency})
    trainer = trainer_of(pl, folder, [monitor], strategy=strategy_of(pl, 2))
    trainer.fit(module_of(pl, "none"), DataLoader(Pixels(4, 1)), DataLoader(Pixels(4, 1)))


def refuse(folder):
    """To be run in a process of its own."""
    side_by_side(refused, 2, str(folder))


def died(rank, folder):
    """One process of a training whose first process dies while it explains."""
    pl = importlib.import_module("pytorch_lightning")
    monitor = AttributionMonitor({"dies": Dies})
    trainer = trainer_of(pl, folder, [monitor], strategy=strategy_of(pl))
    trainer.fit(module_of(pl, "none"), DataLoader(Pixels(8, 1)), DataLoader(Pixels(4, 1)))


def die(folder):
    """To be run in a process of its own."""
    side_by_side(died, 2, str(folder))
