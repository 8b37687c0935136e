"""The callback with this package's methods, on Transformers for images and for text."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from captum_transformer import ConservativeLRP, GenericAttentionRelevance, TransformerAttribution
from lightning_callbacks import AttributionMonitor
from tests.lightning_callbacks.models import CLASSES, SIZE, classifier, loaders

METHODS = {
    "chefer": TransformerAttribution,
    "generic": GenericAttentionRelevance,
    "lrp": ConservativeLRP,
}


def run(pl, options, monitor, module, data):
    logger = pl.loggers.TensorBoardLogger(options["default_root_dir"])
    trainer = pl.Trainer(**options, callbacks=[monitor], max_epochs=2, logger=logger)
    trainer.fit(module, *data)
    trainer.validate(module, data[1], verbose=False)
    return EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0}).Reload()


def test_images(pl, trainer_options):
    timm = pytest.importorskip("timm.models")
    vit = timm.VisionTransformer(
        img_size=SIZE, patch_size=4, num_classes=CLASSES, embed_dim=16, depth=2, num_heads=2
    )
    monitor = AttributionMonitor(METHODS, num_samples=2, heatmap={"smooth": True}, on_error="raise")
    events = run(pl, trainer_options, monitor, classifier(pl, vit), loaders())
    assert len(events.Tags()["images"]) == 2 * 2 * len(METHODS)
    for method in METHODS:
        assert len(events.Scalars(f"attribution/rank_correlation/{method}")) == 2


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask):
        states = self.layer(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        return self.head(states[:, 0])


def test_texts(pl, trainer_options):
    class Reader(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder = Encoder()

        def forward(self, input_ids, attention_mask):
            return self.encoder(input_ids, attention_mask)

        def training_step(self, batch, batch_idx):
            logits = self(batch["input_ids"], batch["attention_mask"])
            return nn.functional.cross_entropy(logits, batch["labels"])

        def validation_step(self, batch, batch_idx):
            self.training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def collate(texts):
        # Each batch is padded to its own length.
        longest = max(map(len, texts))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids[:, 0] % 2}

    texts = [list(range(1, 2 + length)) for length in (3, 5, 7, 9, 4, 6)]
    data = [DataLoader(texts, batch_size=2, collate_fn=collate) for _ in range(2)]
    shown = []

    def to_tokens(ids):
        shown.append(ids.tolist())
        return [f"t{i}" for i in ids.tolist()]

    monitor = AttributionMonitor(
        {"generic": GenericAttentionRelevance},
        num_samples=3,
        to_tokens=to_tokens,
        on_error="raise",
    )
    events = run(pl, trainer_options, monitor, Reader(), data)
    assert len(events.Tags()["images"]) == 3 * 2
    assert shown[0] == [1, 2, 3, 4, 0, 0]
    assert len(events.Scalars("attribution/rank_correlation/generic")) == 2
