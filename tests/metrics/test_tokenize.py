"""Captions split as the COCO evaluation's tokenizer splits them; beside this the jar is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.metrics.tokenize import tokenize


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog can't swim.", "a man 's dog ca n't swim"),
        ("They're here, we've won; she'll go!", "they 're here we 've won she 'll go"),
        ('"Quoted" text: (a sign) - done...', "quoted text -lrb- a sign -rrb- done"),
        ("A black-and-white T-shirt", "a black-and-white t-shirt"),
        ("At 10:30am or 5 p.m. in the U.S. cannot", "at 10:30 am or 5 p.m. in the u.s. can not"),
        ("Mr. Smith at 1,000 feet, #1", "mr. smith at 1,000 feet # 1"),
        ("The dogs' ball", "the dogs ball"),
        ("rock 'n' roll at five o'clock", "rock 'n' roll at five o'clock"),
        ("two dogs,one cat", "two dogs one cat"),
        ("it’s a “sign”", "it 's a sign"),
        (" . ", ""),
        ("", ""),
        ("a 😀 boy&amp;girl", "a boy & girl"),
        ("£5 or €6, 7¢", "# 5 or $ 6 7 cents"),
        ("C# and AT&T at www.x.org/yes, me@x.org", "c# and at&t at www.x.org/yes me@x.org"),
        ("caf\u00e9 na\u00efve soft\u00adly", "café naïve softly"),
    ],
)
def test_captions_split_like_the_penn_treebank(caption, tokens):
    assert tokenize(caption) == tokens.split()


def test_what_belongs_together_across_a_space_stays_one_token():
    assert tokenize("2 1/2 dogs") == ["2\u00a01/2", "dogs"]
    assert tokenize("call (555) 555-1234") == ["call", "-lrb-555-rrb-\u00a0555-1234"]
    assert tokenize("no. 5 and no. Five") == ["no.", "5", "and", "no", "five"]
    assert tokenize("plan B. The dog, plan B. my dog") == [
        *("plan", "b", "the", "dog", "plan", "b.", "my", "dog")
    ]


@given(st.text())
def test_any_text_gives_lower_case_tokens_without_plain_spaces(caption):
    for token in tokenize(caption):
        assert token
        assert " " not in token
        assert "\n" not in token


@given(st.text(), st.text())
def test_what_was_split_before_changes_nothing(first, second):
    alone = tokenize(second)
    tokenize(first)
    assert tokenize(second) == alone


def test_long_text_without_a_space_takes_no_ages():
    assert tokenize("a." * 5000 + "!")
    assert tokenize("a-" * 5000)
    assert tokenize("'" * 5000) == []
