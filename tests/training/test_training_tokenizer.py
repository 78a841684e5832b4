import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.training import tokenizer as wordpiece

CAPTIONS = ["A small red circle.", "two large blue squares", "it's left of the star"] * 3


@functools.cache
def a_tokenizer():
    return wordpiece.learn(CAPTIONS, 400)


@pytest.fixture
def learned():
    return a_tokenizer()


@given(st.text(st.sampled_from("abcxyzABZ0189 .,!?'-()é"), max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_word_of_letters_digits_and_punctuation_is_unknown(text):
    tokenizer = a_tokenizer()
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_words_of_the_captions_are_single_tokens_and_decode_back(learned):
    ids = learned("Two large blue squares", add_special_tokens=False).input_ids
    assert len(ids) == 4
    assert learned.decode(ids) == "two large blue squares"


def test_special_tokens_are_those_of_blip(learned):
    vocab = learned.get_vocab()
    assert [vocab[token] for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [*range(5)]
    assert learned.bos_token == "[DEC]"
    assert learned.bos_token_id == len(learned) - 1


def test_a_saved_tokenizer_loads_the_same_from_its_json_or_from_vocab_txt(learned, tmp_path):
    from transformers import AutoTokenizer

    wordpiece.save(learned, tmp_path)
    text = "Two zebras, left of the STAR!"
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == learned(text).input_ids
    (tmp_path / "tokenizer.json").unlink()
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == learned(text).input_ids


def test_vocabulary_is_the_same_every_time_and_no_larger_than_asked(learned):
    for _ in range(5):
        assert wordpiece.learn(CAPTIONS, 400).get_vocab() == learned.get_vocab()
    assert len(wordpiece.learn(CAPTIONS, 130)) == 130
