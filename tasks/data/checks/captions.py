"""What is wrong with one caption, by itself."""

import html
import unicodedata
from collections import Counter

import regex

from configs.schema import ChecksConfig
from tasks.data.rows import Fault

# Scripts in use today; letters of any other tell nothing.
_SCRIPTS = (
    *("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Hebrew", "Arabic", "Syriac"),
    *("Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada"),
    *("Malayalam", "Sinhala", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Mongolian"),
    *("Ethiopic", "Cherokee", "Thaana", "Han", "Hiragana", "Katakana", "Hangul", "Bopomofo"),
)
_WRITTEN_TOGETHER = (
    {"Han", "Hiragana", "Katakana"},
    {"Han", "Hangul"},
    {"Han", "Bopomofo"},
)
_LETTERS = regex.compile(
    "|".join(rf"(?P<{script}>[\p{{L}}&&\p{{Script={script}}}]+)" for script in _SCRIPTS), regex.V1
)
# Chinese and Japanese leave no spaces: there each Han character counts as a word.
_WORD = regex.compile(r"\p{Han}|[^\s\p{Han}]+")

# Scripts whose spelling has joiners, non-joiners or, having no spaces, zero-width breaks.
_JOINING = (
    r"\p{Arabic}\p{Syriac}\p{Mongolian}\p{Devanagari}\p{Bengali}\p{Gurmukhi}\p{Gujarati}\p{Oriya}"
    r"\p{Tamil}\p{Telugu}\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tibetan}"
)
# In turn: the joiner of two emoji, those of spelling, the letters in the flag of a region.
_NEEDED = regex.compile(
    rf"""
      (?<=[\p{{Extended_Pictographic}}\p{{Emoji_Modifier}}\ufe0f]) \u200d
      (?=\p{{Extended_Pictographic}})
    | (?<=[{_JOINING}]\p{{Inherited}}*) [\u200b-\u200d]
    | (?<=\U0001f3f4) [\U000e0020-\U000e007f]+
    """,
    regex.VERBOSE,
)
_CONTROL = regex.compile(r"[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Cs}\ufffd--\t\n\r]", regex.V1)

_MARKUP = regex.compile(
    r"""
      </?[a-z][\w:-]* (?:\s+[\w:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+))* \s*/?> # a tag
    | <!--|<!doctype\b|<!\[cdata\[|<\?xml
    | !?\[[^\[\]\n]*\]\([^()\s]+(?:\s+"[^"]*")?\)  # a link, an image
    | \[\[[^\[\]\n]+\]\]  # a wiki link
    """,
    regex.VERBOSE | regex.IGNORECASE,
)
_ENTITY = regex.compile(r"&(?:[a-z][a-z0-9]*|\#\d+|\#x[0-9a-f]+);", regex.IGNORECASE)

# Endings of addresses that no sentence begins with, in case a space was left out before it.
_ENDINGS = "com|org|net|edu|gov|mil|info|biz|io|dev|app|tv|uk|de|fr|jp|ru|cn|eu|nl|pl|ch"
_URL = regex.compile(
    rf"""
      (?i:\b(?:https?|ftp)://\S+)
    | (?i:\bwww\.[\w-]+\.\S+)
    | (?<![\w.-]) (?:[\w-]+\.)+ (?:{_ENDINGS}|{_ENDINGS.upper()}) (?![\w-]) (?:/\S*)?
    """,
    regex.VERBOSE,
)


def check(caption: str, config: ChecksConfig) -> tuple[Fault, ...]:
    """All rules that the caption breaks; nothing else is said of an empty one."""
    if not caption.strip():
        return (Fault("caption_empty", "no text"),)
    found = {
        **_length(caption, config),
        "caption_control_characters": _control_characters(caption),
        "caption_mixed_scripts": _mixed_scripts(caption),
        "caption_markup": _markup(caption),
        "caption_url": _url(caption),
    }
    return tuple(Fault(rule, detail) for rule, detail in found.items() if detail)


def _length(caption: str, config: ChecksConfig) -> dict[str, str]:
    words = sum(any(map(str.isalnum, word)) for word in _WORD.findall(caption))
    if words < config.min_caption_words:
        at_least = config.min_caption_words
        return {"caption_too_short": f"{words} words, at least {at_least} are asked for"}
    if words > config.max_caption_words:
        return {"caption_too_long": f"{words} words, over {config.max_caption_words}"}
    return {}


def _control_characters(caption: str) -> str:
    if caption.isascii() and caption.isprintable():  # most captions
        return ""
    # What is needed leaves a mark behind, so that its neighbours stay apart.
    found = Counter(_CONTROL.findall(_NEEDED.sub("\n", caption)))
    return ", ".join(
        f"{_named(character)}{f' ({count} times)' if count > 1 else ''}"
        for character, count in found.items()
    )


def _named(character: str) -> str:
    code = f"U+{ord(character):04X}"
    if character == "\ufffd":
        return f"{code}: was read in the wrong encoding"
    if "\x80" <= character <= "\x9f":
        return f"{code} control character: Windows-1252 read as Latin-1?"
    return f"{code} {unicodedata.name(character, 'control or unassigned character')}"


def _mixed_scripts(caption: str) -> str:
    if caption.isascii():
        return ""
    letters: Counter[str] = Counter()
    example: dict[str, str] = {}
    for match in _LETTERS.finditer(caption):
        letters[match.lastgroup] += len(match[0])
        example.setdefault(match.lastgroup, match[0])
    if len(letters) < 2 or any(letters.keys() <= scripts for scripts in _WRITTEN_TOGETHER):
        return ""
    # The rarest first: of a homoglyph it is the stranger.
    return ", ".join(
        f"{script} {example[script]!r} (U+{ord(example[script][0]):04X})"
        for script, _ in reversed(letters.most_common())
    )


def _markup(caption: str) -> str:
    match = _MARKUP.search(caption)
    if match:
        return repr(match[0])
    # html.unescape knows the names: "R&B;" is text.
    entities = (match[0] for match in _ENTITY.finditer(caption))
    return next((repr(entity) for entity in entities if html.unescape(entity) != entity), "")


def _url(caption: str) -> str:
    match = _URL.search(caption)
    return repr(match[0]) if match else ""
