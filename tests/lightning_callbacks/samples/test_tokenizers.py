"""Explained texts are shown as the words of a tokenizer, or as given by the user."""

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from captum_transformer import ConservativeLRP, GenericAttentionRelevance
from lightning_callbacks import AttributionMonitor
from lightning_callbacks.monitor.texts import Texts
from tests.lightning_callbacks.samples.named import bert, reader, texts

METHODS = {"generic": GenericAttentionRelevance, "lrp": ConservativeLRP}


def test_tokens_can_be_left_out_of_the_scale(pl, trainer_options):
    first = int(texts().dataset[0]["input_ids"][0])
    kwargs = {"num_samples": 1, "on_error": "raise"}
    monitors = [
        AttributionMonitor(METHODS, ("label",), prefix="all", **kwargs),
        AttributionMonitor(METHODS, ("label",), prefix="some", off_scale_ids=[first], **kwargs),
    ]
    logger = pl.loggers.TensorBoardLogger(trainer_options["default_root_dir"])
    trainer = pl.Trainer(**trainer_options, callbacks=monitors, logger=logger)
    trainer.validate(reader(pl, bert(), "signature"), texts(), verbose=False)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    for method in METHODS:
        every, some = (
            events.Images(f"{prefix}_sample_0/label/{method}")[0].encoded_image_string
            for prefix in ("all", "some")
        )
        assert every != some


class Tokenizer:
    """Each word has two ids; 0 is special, 1 is unknown."""

    all_special_ids, unk_token_id = (0, 1), 1

    def convert_ids_to_tokens(self, ids):
        return [f"token {each}" for each in ids]

    def decode(self, ids, **_):
        return "".join(f" w{each // 2}" if each % 2 == 0 else "x" for each in ids)


IDS, VALUES = torch.tensor([0, 2, 3, 1, 8]), torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0])


def test_a_tokenizer_shows_words_without_special_tokens_in_the_scale():
    words, values, off_scale = Texts(Tokenizer()).shown(IDS, VALUES)
    assert words == ["token 0", "w1xx", "w4"]
    assert values.tolist() == [9, 6, 4]
    assert off_scale == [True, False, False]


def test_the_users_tokens_go_before_the_tokenizer():
    texts = Texts(Tokenizer(), lambda ids: [f"<{each}>" for each in ids.tolist()], [8])
    words, values, off_scale = texts.shown(IDS, VALUES)
    assert words == ["<0>", "<2>", "<3>", "<1>", "<8>"]
    assert values is VALUES
    assert off_scale == [False] * 4 + [True]
    assert not any(Texts(Tokenizer(), off_scale_ids=()).shown(IDS, VALUES).off_scale)


def test_without_a_tokenizer_ids_are_shown():
    words, _, off_scale = Texts().with_tokenizer(object()).shown(IDS, VALUES)
    assert words == ["0", "2", "3", "1", "8"]
    assert not any(off_scale)


def test_a_monitor_with_a_tokenizer_logs_words(pl, trainer_options):
    monitor = AttributionMonitor(
        METHODS, ("label",), num_samples=1, on_error="raise", tokenizer=Tokenizer()
    )
    logger = pl.loggers.TensorBoardLogger(trainer_options["default_root_dir"])
    trainer = pl.Trainer(**trainer_options, callbacks=[monitor], logger=logger)
    trainer.validate(reader(pl, bert(), "signature"), texts(), verbose=False)
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    ids = texts().dataset[0]["input_ids"]
    words, _, _ = Texts(Tokenizer()).shown(ids, torch.zeros(len(ids)))
    assert 1 < len(words) < len(ids)
    for method in METHODS:
        (event,) = events.Tensors(f"attribution_sample_0/label/{method}/text_summary")
        rows = event.tensor_proto.string_val[0].decode().splitlines()[-len(words) :]
        assert [row.split(" | ")[1] for row in rows] == words
