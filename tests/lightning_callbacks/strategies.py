"""Under which strategies and precisions a training is the same, bit for bit, when it is watched.

python -m tests.lightning_callbacks.strategies

trains each twice, with the monitor and without, and prints a table.
"""

import importlib
import os
import tempfile
import warnings

import torch
from torch.utils.data import DataLoader

from lightning_callbacks import AttributionMonitor
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks.isolation.test_bit_identity import METHODS, Augmented
from tests.lightning_callbacks.models import classifier
from tests.lightning_callbacks.processes import alone

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed")

STRATEGIES = {
    "one device": lambda pl: {"strategy": "auto", "devices": 1},
    "DDP, two processes": lambda pl: {"strategy": "ddp_fork", "devices": 2},
    "DDP, samples shared": lambda pl: {"strategy": "ddp_fork", "devices": 2},
}


def train(pl, folder, callbacks, accelerator="cpu", **options):
    """A training in which a validation falls between two batches whose gradients accumulate."""
    # Lightning's port of the training before: two must not meet at one.
    os.environ.pop("MASTER_PORT", None)
    pl.seed_everything(7, verbose=False)
    module = classifier(pl)
    # Each process makes its own logger object, and all shall mean the same folder.
    version = "watched" if callbacks else "plain"
    trainer = pl.Trainer(
        accelerator=accelerator,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        logger=pl.loggers.TensorBoardLogger(folder, version=version),
        max_epochs=2,
        accumulate_grad_batches=2,
        val_check_interval=1 if options.get("devices") == 1 else 3,
        callbacks=callbacks,
        **options,
    )
    trainer.fit(
        module,
        DataLoader(Augmented(28, 1), batch_size=4, shuffle=True),
        DataLoader(Augmented(10, 2), batch_size=2),
    )
    return module.state_dict(), trainer


def outcome(flavor, folder, strategy, precision):
    """Trains twice, watched and not; to be run in a process of its own.

    Returns:
        ``"yes"`` if both have the same weights, ``"no"``, or ``"refused"``; and the folder of the
        watched training's log.
    """
    pl = importlib.import_module(flavor)
    monitor = AttributionMonitor(
        METHODS, num_samples=4, share_samples="shared" in strategy, on_error="raise"
    )
    accelerator = "cpu" if precision != "16-mixed" else "gpu"
    make = STRATEGIES[strategy]
    options = {"accelerator": accelerator, "precision": precision}
    try:
        watched, trainer = train(pl, folder, [monitor], **make(pl), **options)
    except MisconfigurationException as reason:
        return "refused", str(reason)
    plain, _ = train(pl, folder, [], **make(pl), **options)
    untrained = classifier(pl).state_dict()
    weight = watched["model.0.weight"]
    assert not torch.equal(weight, untrained["model.0.weight"].to(weight)), "it has not learned"
    same = all(torch.equal(value, plain[name]) for name, value in watched.items())
    return "yes" if same else "no", trainer.logger.log_dir


def main():
    """Prints the table."""
    warnings.simplefilter("ignore")
    print(f"| strategy | {' | '.join(PRECISIONS)} |")
    print("|---|" + "---|" * len(PRECISIONS))
    for strategy in STRATEGIES:
        cells = []
        for precision in PRECISIONS:
            if precision == "16-mixed" and not torch.cuda.is_available():
                cells.append("needs CUDA")
                continue
            with tempfile.TemporaryDirectory() as folder:
                found, _ = alone(outcome, "pytorch_lightning", folder, strategy, precision)
            cells.append(found)
        print(f"| {strategy} | {' | '.join(cells)} |", flush=True)
    print("\nFSDP1 and ZeRO-3 start on GPUs only, and are refused. FSDP2: see test_sharded.py.")


if __name__ == "__main__":
    main()
