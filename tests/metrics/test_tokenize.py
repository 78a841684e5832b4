"""Captions split as the COCO evaluation's tokenizer splits them."""

import csv
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.metrics.tokenize import tokenize

CAPTIONS = Path(__file__).parents[3] / "shared/data/flickr8k_1000/captions.txt"


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
    ],
)
def test_everyday_captions_split_like_the_penn_treebank(caption, tokens):
    assert tokenize(caption) == tokens.split()


@given(st.text())
def test_any_text_gives_lower_case_tokens_without_spaces(caption):
    for token in tokenize(caption):
        assert token
        assert token == token.lower()
        assert not any(letter.isspace() for letter in token)


@pytest.mark.skipif(not CAPTIONS.exists(), reason="../shared/data/flickr8k_1000 is absent")
@pytest.mark.skipif(shutil.which("java") is None, reason="the reference tokenizer needs java")
def test_real_captions_split_as_the_reference_tokenizer_splits_them():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with CAPTIONS.open(encoding="utf-8") as rows:
        captions = [row["caption"] for row in csv.DictReader(rows)]
    reference = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    differing = [c for i, c in enumerate(captions) if tokenize(c) != reference[i][0].split()]
    assert differing == []
