import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.implementations import BertWordPieceTokenizer
from tokenizers.processors import BertProcessing
from transformers import PreTrainedTokenizerFast

from captum_transformer.visualization import decode_with_offsets, merge_words

TEXT = "Don't say it's  un-believable… naïve?"


def word_pieces():
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator([TEXT, "so say we all"], vocab_size=45, show_progress=False)
    pieces._tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer)


def bytes_alone():
    """As GPT-2's, without a single merge: each byte is a token, spaces belong to what follows."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: n for n, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def merged(tokenizer, text):
    coded = tokenizer(text, return_offsets_mapping=True)
    values = torch.arange(1.0, len(coded.input_ids) + 1)
    words, sums = merge_words(coded.tokens(), values, coded["offset_mapping"], text)
    assert float(sums.sum()) == float(values.sum())
    return words, sums


def test_pieces_become_the_words_of_the_text():
    words, sums = merged(word_pieces(), TEXT)
    expected = ["[CLS]", "Don't", "say", "it's", "un-believable", "…", "naïve", "?", "[SEP]"]
    assert words == expected
    assert len(sums) == len(words)


def test_bytes_become_words_too():
    words, _ = merged(bytes_alone(), "Don't 🙂 naïve\n\nyes")
    assert [word for word in words if not word.isspace()] == ["Don't", "🙂", "naïve", "yes"]
    assert [word for word in words if word.isspace()]


def test_scripts_without_spaces_keep_their_tokens():
    text = "我喜欢看 films"
    spans = [(0, 1), (1, 3), (3, 4), (5, 7), (7, 10)]
    words, sums = merge_words(
        ["我", "喜欢", "看", "fi", "##lms"], torch.ones(5), torch.tensor(spans), text
    )
    assert words == ["我", "喜欢", "看", "films"]
    assert sums.tolist() == [1, 1, 1, 2]


def test_embeddings_are_summed_over_features_and_pieces():
    values = torch.randn(2, 7)
    words, sums = merge_words(["a", "##b"], values, [(0, 1), (1, 2)], "ab")
    assert words == ["ab"]
    torch.testing.assert_close(sums, values.sum()[None])


def test_special_tokens_beside_each_other_stay_apart():
    words, _ = merge_words(["[CLS]", "[SEP]"], torch.ones(2), [(0, 0), (0, 0)], "")
    assert words == ["[CLS]", "[SEP]"]


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([(0, 1)], "need as many offsets"),
        ([(0, 1), (1, 9)], "outside a text of 2 characters"),
        ([(1, 2), (0, 1)], "one text at a time"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(offsets, message):
    with pytest.raises(ValueError, match=message):
        merge_words(["a", "b"], torch.ones(2), offsets, "ab")


def test_a_long_text_takes_no_time():
    text = "word " * 20_000
    spans = [(5 * n, 5 * n + 4) for n in range(20_000)]
    words, _ = merge_words(["word"] * 20_000, torch.ones(20_000), spans, text)
    assert len(words) == 20_000


def test_words_from_ids_are_those_of_the_text():
    tokenizer = word_pieces()
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    ids = tokenizer("So we say un-believable!").input_ids
    tokens, offsets, text = decode_with_offsets(tokenizer, torch.tensor(ids))
    assert len(tokens) > 12
    words, _ = merge_words(tokens, torch.ones(len(ids)), offsets, text)
    assert words == ["[CLS]", "so", "we", "say", "un", "-", "believable", "[UNK]", "[SEP]"]


def test_parts_of_a_character_have_its_place():
    tokenizer, text = bytes_alone(), "Don't 🙂 naïve\n\nyes"
    coded = tokenizer(text, return_offsets_mapping=True)
    _, offsets, decoded = decode_with_offsets(tokenizer, coded.input_ids)
    assert decoded == text
    values = torch.arange(1.0, len(offsets) + 1)
    found = merge_words(coded.tokens(), values, offsets, text)
    expected = merge_words(coded.tokens(), values, coded["offset_mapping"], text)
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1])


def test_special_tokens_in_between_part_words():
    tokenizer = bytes_alone()
    tokenizer.add_special_tokens({"eos_token": "<eos>"})
    ids = [*tokenizer("so")["input_ids"], tokenizer.eos_token_id, *tokenizer("so")["input_ids"]]
    tokens, offsets, text = decode_with_offsets(tokenizer, ids)
    words, _ = merge_words(tokens, torch.ones(5), offsets, text)
    assert (words, text) == (["so", "<eos>", "so"], "soso")


def test_tokens_that_change_what_was_before_are_refused():
    class Backwards:
        def decode(self, ids, **_):
            return ["", "ab", "a", "abc"][len(ids)]

    with pytest.raises(ValueError, match="change the text before them"):
        decode_with_offsets(Backwards(), [1, 2, 3])
