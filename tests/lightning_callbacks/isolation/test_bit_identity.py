"""A training is the same, bit for bit, whether it is watched or not."""

import random

import numpy as np
import pytest
import torch
from captum.attr import GradientShap, IntegratedGradients, NoiseTunnel, Saliency
from torch.utils.data import DataLoader

from lightning_callbacks import AttributionMonitor
from tests.lightning_callbacks.models import Blobs, classifier

pytestmark = pytest.mark.filterwarnings("ignore:The method '(careless|failing)' has changed")


class Augmented(Blobs):
    """Draws from all three global generators in the main process, as augmentations do."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        image = image + 0.1 * torch.randn(image.shape) + 0.1 * random.random()
        return image + float(0.1 * np.random.rand()), label  # noqa: NPY002


class Shap(GradientShap):
    """Draws from NumPy's and PyTorch's generators."""

    def attribute(self, inputs, **options):
        return super().attribute(inputs, torch.zeros_like(inputs[:1]), **options)


class Careless(Saliency):
    """Does all that a method should not do."""

    def attribute(self, inputs, target=None, **options):
        self.forward_func.train()
        torch.manual_seed(random.randrange(100))
        self.forward_func(inputs).sum().backward()
        return super().attribute(inputs, target=target, **options)


class Failing(Careless):
    def attribute(self, inputs, **options):
        super().attribute(inputs, **options)
        raise RuntimeError("no explanation today")


METHODS = {
    "saliency": Saliency,
    "integrated": IntegratedGradients,
    "noisy": lambda module: NoiseTunnel(Saliency(module)),
    "shap": Shap,
    "careless": Careless,
}


def train(pl, options, callbacks, **more):
    pl.seed_everything(7, verbose=False)
    module = classifier(pl)
    trainer = pl.Trainer(
        **options,
        max_epochs=2,
        callbacks=callbacks,
        logger=pl.loggers.TensorBoardLogger(options["default_root_dir"]),
        # Validation falls between two batches whose gradients are being accumulated.
        accumulate_grad_batches=2,
        val_check_interval=3,
        **more,
    )
    trainer.fit(
        module,
        DataLoader(Augmented(28, 1), batch_size=4, shuffle=True),
        DataLoader(Augmented(10, 2), batch_size=4),
    )
    draws = torch.rand(3), torch.tensor(random.random()), torch.from_numpy(np.random.rand(3))  # noqa: NPY002
    modes = [part.training for part in module.modules()]
    return module.state_dict(), trainer.optimizers[0].state_dict()["state"], draws, modes


def assert_same(watched, plain):
    torch.testing.assert_close(watched, plain, rtol=0, atol=0, equal_nan=True)


@pytest.mark.both
@pytest.mark.parametrize(
    "precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)]
)
def test_training_is_bit_identical(pl, trainer_options, precision):
    monitor = AttributionMonitor(METHODS, num_samples=2, on_error="raise")
    watched = train(pl, trainer_options, [monitor], precision=precision)
    assert monitor.state_dict()["validation_runs"] == 4
    assert_same(watched, train(pl, trainer_options, [], precision=precision))


def test_training_is_bit_identical_when_a_method_fails(pl, trainer_options):
    monitor = AttributionMonitor({"failing": Failing, "saliency": Saliency}, num_samples=3)
    with pytest.warns(UserWarning, match="no explanation today"):
        watched = train(pl, trainer_options, [monitor])
    assert_same(watched, train(pl, trainer_options, []))


def test_the_comparison_would_notice(pl, trainer_options):
    class Draws(pl.Callback):
        def on_validation_batch_end(self, *args, **kwargs):
            torch.rand(1)

    with pytest.raises(AssertionError):
        assert_same(train(pl, trainer_options, [Draws()]), train(pl, trainer_options, []))
