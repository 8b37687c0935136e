"""Modules and data whose batches are mappings."""

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader


def bert():
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=12,
            num_labels=3,
        )
    )


def reader(pl, model, form):
    class Reader(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, batch_idx):
            return self(**batch)["loss"]

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self(**batch)["loss"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class WholeBatch(Reader):
        def forward(self, **batch):
            return self.model(**batch)

    class Signature(Reader):
        def forward(self, input_ids, attention_mask=None, labels=None):
            return self.model(input_ids, attention_mask=attention_mask, labels=labels)

    return {"whole batch": WholeBatch, "signature": Signature}[form]()


def texts(padded=7):
    generator = torch.Generator().manual_seed(0)
    samples = []
    for length in (7, 4, 6, 5):
        ids = torch.randint(1, 30, (length,), generator=generator)
        ids = nn.functional.pad(ids, (0, padded - length))
        mask = (ids > 0).long()
        samples.append({"input_ids": ids, "attention_mask": mask, "labels": ids[0] % 3})
    return DataLoader(samples, batch_size=2)
