"""Every kind of dirt in a caption is made and found by its name; honest captions are left alone."""

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import ChecksConfig
from tasks.data.checks.captions import check

CONFIG = ChecksConfig()


def rules(caption: str) -> list[str]:
    return [fault.rule for fault in check(caption, CONFIG)]


def detail(caption: str) -> str:
    (fault,) = check(caption, CONFIG)
    return fault.detail


@pytest.mark.parametrize("caption", ["", " ", "\t\n", "\u00a0\u3000"])
def test_of_an_empty_caption_nothing_else_is_said(caption) -> None:
    assert rules(caption) == ["caption_empty"]


@pytest.mark.parametrize(
    ("words", "rule"),
    [(1, ["caption_too_short"]), (2, []), (60, []), (61, ["caption_too_long"])],
)
def test_words_are_counted_and_the_limits_are_inclusive(words, rule) -> None:
    assert rules(" ".join(["dog"] * words) + " .") == rule


def test_punctuation_is_no_word_and_chinese_needs_no_spaces() -> None:
    assert rules("dog .") == ["caption_too_short"]
    assert rules("! 🙂") == ["caption_too_short"]
    assert rules("狗在跑") == []
    assert rules("犬が走る") == []
    assert rules("狗" * 61) == ["caption_too_long"]


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("a\u200bdog runs", "U+200B ZERO WIDTH SPACE"),
        ("\ufeffa dog runs", "U+FEFF"),
        ("a dog\x00 runs", "U+0000"),
        ("a\x7f dog\x7f runs", "(2 times)"),
        ("a soft\u00adhyphen", "U+00AD SOFT HYPHEN"),
        ("a dog \u202e runs", "U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("a caf\ufffd", "wrong encoding"),
        ("a dog\x92s tail", "Windows-1252"),
        ("a \ue000 logo", "U+E000"),
        ("a \U000e0fff thing", "U+E0FFF"),
        ("a \ud800 half", "U+D800"),
        ("a cat \u200d dog", "U+200D ZERO WIDTH JOINER"),
        ("a🙂\u200d cat", "U+200D"),
    ],
)
def test_control_characters_are_named(caption, told) -> None:
    assert rules(caption) == ["caption_control_characters"]
    assert told in detail(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a dog\truns\r\nfast",
        "an e\u0301te\u0301 naïve",
        "👩🏽\u200d🚀 in space",
        "👨\u200d👩\u200d👧 at home",
        "❤\ufe0f\u200d🔥 on fire",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f a flag",
        "می\u200cخواهم بروم",  # Persian
        "क्\u200dष त्र",  # Hindi
        "ഒരു അവന്\u200d",  # Malayalam
        "ភាសា\u200bខ្មែរ ល្អ",  # Khmer
    ],
)
def test_what_spelling_and_emoji_need_is_no_control_character(caption) -> None:
    assert rules(caption) == []


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("a c\u0430t runs", "Cyrillic 'а' (U+0430), Latin"),
        ("a dog собака", "Cyrillic 'собака'"),
        ("a dog 狗", "Han '狗'"),
        ("собака σκύλος πηδά ψηλά", "Cyrillic 'собака' (U+0441), Greek"),
        ("ひらがな 한국 사람", "Hangul"),
    ],
)
def test_letters_of_several_scripts_are_named_the_stranger_first(caption, told) -> None:
    assert rules(caption) == ["caption_mixed_scripts"]
    assert told in detail(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "東京タワーの下に立つ人",
        "한국 사람 漢字",
        "une fête à la plage",
        "собака бежит, 3 км",
        "5 µm wide, 20 °C, ½ full 🙂",
        "ένας σκύλος τρέχει",
    ],
)
def test_one_language_with_its_signs_is_not_mixed(caption) -> None:
    assert rules(caption) == []


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("a <b>dog</b> runs", "<b>"),
        ("a dog<br/> runs", "<br/>"),
        ("<img src=\"a\" alt='b' /> a dog", "<img"),
        ("<?xml ?> a dog", "<?xml"),
        ("<!-- a dog runs -->", "<!--"),
        ("a dog <unk> runs", "<unk>"),
        ("Tom &amp; Jerry run", "&amp;"),
        ("it&#39;s a dog", "&#39;"),
        ("a dog&nbsp;runs", "&nbsp;"),
        ("a [dog](dog.html) runs", "[dog](dog.html)"),
        ("a dog ![](x.png)", "![](x.png)"),
        ("a [[dog|hound]] runs", "[[dog|hound]]"),
    ],
)
def test_markup_is_shown(caption, told) -> None:
    assert rules(caption) == ["caption_markup"]
    assert told in detail(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "i <3 my dog",
        "a < b",
        "a<b and c>d",
        "two dogs -> one ball",
        "rock & roll; music",
        "R&B; a band",
        "AT&T sign",
        "a dog [sic] runs (fast)",
        "array[0] and [1]",
    ],
)
def test_signs_are_no_markup(caption) -> None:
    assert rules(caption) == []


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("see http://a.b/c for a dog", "http://a.b/c"),
        ("see HTTPS://x.org now", "HTTPS://x.org"),
        ("go to www.flickr.com now", "www.flickr.com"),
        ("photo by example.com today", "example.com"),
        ("photo by EXAMPLE.CO.UK today", "EXAMPLE.CO.UK"),
        ("see a-b.example.org/x?y=1 now", "a-b.example.org/x?y=1"),
    ],
)
def test_addresses_are_shown(caption, told) -> None:
    assert rules(caption) == ["caption_url"]
    assert told in detail(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "3.5 m wide",
        "the end.Start again",
        "a dog runs.It jumps",
        "at 10 a.m. in the U.S. e.g. there",
        "the St.Louis arch",
        "a wait...what",
        "section 1.2.3 of it",
        "a dog.",
    ],
)
def test_dots_are_no_addresses(caption) -> None:
    assert rules(caption) == []


def test_a_caption_that_breaks_several_rules_names_all() -> None:
    assert rules("<b>http://а.com\u200b</b>") == [
        "caption_too_short",
        "caption_control_characters",
        "caption_mixed_scripts",
        "caption_markup",
        "caption_url",
    ]


def test_in_all_captions_of_flickr8k_only_what_is_there_is_found(photos) -> None:
    with (photos / "captions_full.txt").open(encoding="utf-8", newline="") as lines:
        captions = [row["caption"] for row in csv.DictReader(lines)]
    assert len(captions) == 40_455
    found = [(fault.rule, fault.detail) for text in captions for fault in check(text, CONFIG)]
    # Two captions are just "a", three tell what address is written on a hat or a sign.
    assert sorted(found) == [
        *[("caption_too_short", "1 words, at least 2 are asked for")] * 2,
        *[("caption_url", "'avrovulcan.com'")] * 2,
        ("caption_url", "'statefarm.com'"),
    ]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(), max_size=40))
def test_any_text_is_answered_with_each_rule_at_most_once(caption) -> None:
    found = rules(caption)
    assert len(found) == len(set(found))
    assert ("caption_empty" in found) == (caption.strip() == "")
