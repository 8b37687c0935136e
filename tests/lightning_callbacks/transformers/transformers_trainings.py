"""Small trainings with the trainer of Transformers."""

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from captum_transformer import ConservativeLRP, GenericAttentionRelevance

METHODS = {"gae": GenericAttentionRelevance, "lrp": ConservativeLRP}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
}


class Texts(Dataset):
    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(3, 40, (count, 7), generator=generator)
        self.labels = self.ids.sum(1) % 3

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        # Draws in the main process, as augmentations do.
        length = 4 + index % 4 + int(torch.rand(()) < 0)
        mask = (torch.arange(7) < length).long()
        return {
            "input_ids": self.ids[index] * mask,
            "attention_mask": mask,
            "labels": self.labels[index],
        }


class Images(Texts):
    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {
            "pixel_values": torch.randn(3, 16, 16, generator=generator),
            "labels": self.labels[index],
        }


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=40, **SMALL))


def vit():
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **SMALL))


def trainer(tmp_path, model, data, callbacks, evaluated=None, **more):
    usual = {
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = TrainingArguments(str(tmp_path), **(usual | more))
    evaluated = data(5, 2) if evaluated is None else evaluated
    return Trainer(
        model, args, train_dataset=data(24, 1), eval_dataset=evaluated, callbacks=callbacks
    )


def read(folder):
    # Newer versions of Transformers have no `logging_dir` any more.
    runs = {path.parent for path in folder.rglob("events.out.tfevents.*")}
    (run,) = [run for run in runs if not run.name.endswith("_charts")]
    return EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0}).Reload()


def steps(events):
    return [event.step for event in events]
