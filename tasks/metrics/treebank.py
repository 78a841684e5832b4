"""Splits text as Stanford's PTBTokenizer 3.4.1 does, the one that the COCO evaluation runs in Java.

At every place the rule that sees furthest wins, the first of those that see equally far. What a
rule looks at beyond its token (its context) counts as seen. The rules were found by asking that
program about millions of strings; `tests/metrics/test_tokenize_jar.py` goes on asking.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from tasks.metrics.alphabet import BREAKS, DIGITS, LETTERS, MARKS, SPACES, SYMBOLS
from tasks.metrics.words import ABBREVIATIONS, BEFORE_NUMBERS, ENDINGS, OPENINGS, SENTENCE_ENDING

_SPACE = frozenset(re.findall(f"[{SPACES}{BREAKS}]", "".join(map(chr, range(0x3001)))))
_APOSTROPHE = r"(?:['\u0092\u2019]|(?i:&apos;))"
_TICK = r"(?:['`\u0091\u0092\u2018\u2019\u201b]|(?i:&apos;))"  # any that names are spelled with
_CLITIC = rf"{_APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"
_BRACKETS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
}
_QUOTES = {
    **dict.fromkeys("`\u0091\u2018\u201b\u2039", "`"),
    **dict.fromkeys("\u0092\u2019\u203a", "'"),
    **dict.fromkeys("\u0093\u201c\u00ab", "``"),
    **dict.fromkeys('\u0094\u201d\u00bb"', "''"),
}
_SYMBOLS = {
    **_BRACKETS,
    **_QUOTES,
    **dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$"),
    "\u00a2": "cents",
    "\u00a3": "#",
    "\u00ad": "-",
}
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&nbsp;": ""}
# What Java takes for one word when it looks for the last sigma.
_RUN = re.compile(
    r"(?:[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[-.'’\u2010\u2011\u0300-\u036f])+"
)
_KNOWN_SYMBOL = re.compile(f"[{SYMBOLS}\u00ad]")


def _as_it_is(text: str) -> str:
    return text


def _word(text: str) -> str:
    text = re.sub("(?i:&amp;)", "&", text.replace("\u00ad", ""))
    return text or "-"


def _straight(text: str) -> str:
    return re.sub("[\u0091\u2018\u201b]", "`", re.sub("[\u0092\u2019]|&apos;", "'", text))


def _unspaced(text: str) -> str:
    return text.replace(" ", "\u00a0")


def _fraction(text: str) -> str:
    return _FRACTIONS.get(text) or _unspaced(text)


def _face(text: str) -> str:
    return _unspaced(text.replace("(", "-lrb-").replace(")", "-rrb-"))


def _quotes(text: str) -> str:
    return "".join(_QUOTES.get(mark, mark) for mark in text)


def _dash(text: str) -> str:
    return text if text == "-" or (text[0] == "-" and len(text) > 4) else "--"


def _entity(text: str) -> str:
    named = {"&quot;": "''", "&apos;": "'"}  # unlike the others known in small letters only
    return named[text] if text in named else _ENTITIES.get(text.lower(), text)


def _symbol(text: str) -> str:
    return _SYMBOLS.get(text, text) if _KNOWN_SYMBOL.match(text) else ""


@dataclass(frozen=True)
class _Rule:
    """A token is the first group of `pattern`, or all of it; `needs` is text it can't do without.

    `needs` only saves time: a rule is left out where the text has none of these characters.
    """

    pattern: re.Pattern[str]
    shown: Callable[[str], str]
    needs: str


@dataclass(frozen=True)
class _Pieces:
    """Parts of patterns, on the alphabet that the text needs."""

    letter: str  # the inside of a class: what hyphens and slashes join
    digit: str
    initial: str  # a pattern: what a word begins with
    inner: str

    @classmethod
    def of(cls, is_ascii: bool, has_entities: bool) -> "_Pieces":
        letter, mark, digit = ("A-Za-z", "", "0-9") if is_ascii else (LETTERS, MARKS, DIGITS)
        soft = "" if is_ascii else "\u00ad"
        initial, inner = f"[{letter}{mark}{soft}]", f"[{letter}{mark}{digit}{soft}]"
        if has_entities:
            accented = "&(?i:[aeiou](?:acute|grave|uml));"
            initial, inner = f"(?:{initial}|{accented})", f"(?:{inner}|{accented})"
        return cls(letter, digit, initial, inner)

    @property
    def word(self) -> str:
        return rf"{self.initial}{self.inner}*(?:[.!?]{self.initial}{self.inner}*)*"

    @property
    def joined(self) -> str:
        """Letters and digits, hyphens or underscores between."""
        part = rf"(?:[dDoOlL]{_TICK}[{self.letter}{self.digit}])?[{self.letter}{self.digit}]+"
        return rf"{part}(?:[-_\u058a\u2010\u2011]{part})*"


_HYPHENED = r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9\u00ad]+))+"
_FIRM = "[A-Z]+(?:(?:(?i:&amp;)|[+&])[A-Z]+)+"  # AT&T
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_VALUE = rf"(?:'[^'\r\n]*'|\"[^\"\r\n]*\"|{_NAME})"
_TAG = rf"(?:<[!?][A-Za-z-][^>\r\n]*>|<{_NAME}(?: +{_NAME}(?: *= *{_VALUE})?)* */? *>|</{_NAME} *>)"
_BLANK = rf"[{SPACES}{BREAKS}\u0085]"
_TICKS = "'`&\u0091\u0092\u2018\u2019\u201b"
_Described = tuple[Callable[[str], str], str, tuple[str, ...]]


def _like(shown: Callable[[str], str], needs: str, *patterns: str) -> _Described:
    return shown, needs, patterns


def _splits_and_entities(p: _Pieces) -> Iterator[_Described]:
    yield _like(_as_it_is, "", "((?i:can))(?i:not)", "((?i:gon|wan))(?i:na)")
    yield _like(_as_it_is, "", "((?i:got))(?i:ta)", "((?i:lem|gim))(?i:me)")
    yield _like(_straight, "'", "('[tT])(?i:is|was)")
    yield _like(_unspaced, "<", _TAG)
    yield _like(lambda _: "--", "&", "&(?i:md|mdash|ndash);")
    yield _like(lambda _: "&", "&", "&(?i:amp);")
    yield _like(_entity, "&", "&(?i:ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);")
    yield _like(_entity, "&", "&(?i:lt|gt|quot|nbsp|apos);")


def _words(p: _Pieces) -> Iterator[_Described]:
    q = _APOSTROPHE
    yield _like(
        _word,
        _TICKS,
        rf"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*)[nN]{_TICK}[tT]",
        rf"({p.word}){_CLITIC}",
    )
    yield _like(
        _as_it_is,
        _TICKS,
        f"{q}[nN]{q}",
        f"[lLdDjJ]{q}",
        f"[oO][lL]{q}",
        f"(?i:{q}(?:em|till?|cause)|o{_TICK}(?:clock|o)|o{q}er|c{q}(?:mon|est)|e{q}er)",
        f"(?i:d{q}ye|s{q}mores|cap{q}n|dunkin{q}|somethin{q})",
        rf"([yY]{q})[{p.letter}]",
        f"{q}[2-9]0[sS]",
        rf"({q}[nN])[ \t\u00a0\r\n]",
        f"({q}[0-9][0-9]){_BLANK}",
        r"(?:[\u0092\u2019]|(?i:&apos;))[nN]",
    )
    yield _like(
        _word,
        _TICKS,
        rf"[A-HJ-XZdlno]{_TICK}[{p.letter}]{{2,}}",
        rf"[{p.letter}]+[aeiouyAEIOUY]{_TICK}[aeiouA-Z][{p.letter}]*",
    )


def _addresses(p: _Pieces) -> Iterator[_Described]:
    ends = r"[^ \t\n\f\r\"<>|.!?(){},-]"
    user = r"[a-zA-Z0-9][^ \t\n\f\r\"<>|()\u00a0{}]*"
    domain = r"[^ \t\n\f\r\"<>|().\u00a0{}]+"
    host = r"(?:[^ \t\n\f\r!\"$'()`{|},-_]+\.)+(?i:com|net|org|edu)"
    www = r"www\.(?:[^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
    yield _like(_as_it_is, ":", rf"(?i:https?)://[^ \t\n\f\r\"<>|(){{}}]+{ends}")
    yield _like(_as_it_is, "@", rf"(?:<|&lt;)?{user}@(?:{domain}\.)*{domain}(?:>|&gt;)?")
    inner = p.inner
    yield _like(_word, ".", rf"({SENTENCE_ENDING}\.)(?s:(?!{inner}).{{2}}|.(?!{inner}).|.)")
    yield _like(_word, "", p.word)
    for address in (www, host):
        yield _like(_as_it_is, ".", address, rf"{address}/[^ \t\n\f\r\"<>|()]+{ends}")
    yield _like(_as_it_is, "@#", "@[a-zA-Z_][a-zA-Z_0-9]*", rf"\#{p.initial}+")
    yield _like(_straight, _TICKS, rf"({_CLITIC})[^A-Za-z]", _CLITIC.replace("'", ""))
    yield _like(_straight, _TICKS, rf"([nN]{_TICK}[tT])[^A-Za-z]")


def _numbers(p: _Pieces) -> Iterator[_Described]:
    d = f"[{p.digit}]"
    yield _like(_word, "-/", f"{d}{{1,2}}[-/]{d}{{1,2}}[-/]{d}{{2,4}}")
    yield _like(_word, "", f"[-+]?{d}+", rf"[-+]?{d}*(?:[.:,\u00ad]{d}+)+")
    yield _like(
        _fraction,
        "/\u2044¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞",
        rf"(?:{d}{{1,4}}[- \u00a0])?{d}{{1,4}}\\?[/\u2044]{d}{{1,4}}",
        "[¼½¾⅓-⅞]",
    )
    yield _like(_word, "", p.joined)
    yield _like(_word, "-", _HYPHENED)
    slashed = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    yield _like(_word, "/", rf"{slashed}(?:\\?/{slashed}){{1,2}}")
    yield _like(_as_it_is, ".", r"[A-Za-z](?:\.[A-Za-z])+\.")
    part = f"{p.inner}+"
    yield _like(_as_it_is, ".", rf"({part}(?:\.{part})*\.{ENDINGS})(?:{_BLANK}|[.!?,])")
    yield _like(_word, "+&", _FIRM)


def _abbreviations(p: _Pieces) -> Iterator[_Described]:
    for text in (p.word, p.joined, _HYPHENED, _FIRM):
        yield _like(_word, ".", rf"({text}\.)[,;:\u3001]")
    yield _like(_word, "$", r"[A-Z]*\$")
    yield _like(_word, ".", rf"{ABBREVIATIONS}\.")
    yield _like(
        _as_it_is,
        ".",
        rf"({BEFORE_NUMBERS}\.){_BLANK}?[{p.digit}]",
        rf"([A-Za-z])\.{_BLANK}+(?:{OPENINGS}|{_TAG}){_BLANK}",
        r"[A-Za-z]\.",
        r"(?i:ph\.d\.)",
    )


def _marks(p: _Pieces) -> Iterator[_Described]:
    area = r"\([0-9]{2,3}\)[ \u00a0]?"
    country = r"(?:\+\+?)?(?:[0-9]{2,4}[- ])?[0-9]{2,4}[- ]"
    dotted = r"(?:\+\+?)?(?:[0-9]{2,4}\.)?[0-9]{2,4}\."
    yield _like(_face, "0123456789", f"(?:{area}|{country})[0-9]{{3,4}}[- ]?[0-9]{{3,5}}")
    yield _like(_face, "0123456789", rf"{dotted}[0-9]{{3,4}}\.[0-9]{{3,5}}")
    yield _like(
        _face,
        ":;=_(",
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]",
        r"[-\^x=~<>']_[-\^x=~<>']",
        r"\([-\^x=~<>'][_.]?[-\^x=~<>']\)",
        r"\([\^x=~<>']-[\^x=~<>'`]\)",
    )
    yield _like(_dash, "", r"-+", r"[\u0096\u0097\u2013-\u2015]")
    yield _like(lambda _: "...", "", r"\.{3,5}", r"\. \. \.", r"[\u0085\u2026]")
    yield _like(_as_it_is, "*#@<>?!_\\", r"(?:\\\*)+", r"\*+", r"\#{2,}", "@{2,}", "<<", ">>")
    yield _like(_as_it_is, "?!_", "[?!]+", "_+")
    yield _like(_as_it_is, "-", "-(?i:[LR][RCS]B)-")
    yield _like(_quotes, "", "[`\u0091-\u0094\u2018-\u201f\u00ab\u00bb\u2039\u203a]{2}", "''")
    yield _like(_as_it_is, "", "[⁺⁻₊₋]?[⁰¹²³⁴-⁹]+", "[⁺⁻₊₋]?[₀-₉]+")
    yield _like(_as_it_is, "#+", r"[cCfF]\#", r"[cC]\+\+")
    yield _like(_symbol, "", "(?s:.)")


@cache
def _rules(is_ascii: bool, has_entities: bool) -> list[_Rule]:
    pieces = _Pieces.of(is_ascii, has_entities)
    parts = (_splits_and_entities, _words, _addresses, _numbers, _abbreviations, _marks)
    return [
        _Rule(re.compile(pattern), shown, needs)
        for part in parts
        for shown, needs, patterns in part(pieces)
        for pattern in patterns
    ]


_TELLING = re.compile(r"[^A-Za-z\s]")


@lru_cache(maxsize=4096)
def _rules_for(telling: str) -> list[_Rule]:
    rules = _rules(telling.isascii(), "&" in telling)
    return [rule for rule in rules if not rule.needs or any(c in telling for c in rule.needs)]


def split(text: str) -> Iterator[str]:
    """The tokens of one line in small letters, punctuation among them; a space inside is U+00A0."""
    if not text.isascii() and max(text) > "\uffff":
        text = _units(text)
    rules = _rules_for("".join(sorted(set(_TELLING.findall(text)))))
    text = text.replace("\n", " ") + "\n"
    place = 0
    while place < len(text):
        blank = place
        while blank < len(text) and text[blank] in _SPACE:
            blank += 1
        if blank > place and text[place].isascii():
            place = blank
            continue
        match, rule = _furthest(rules, text, place)
        if blank >= match.end():
            place = blank
            continue
        end = match.end(1) if rule.pattern.groups else match.end()
        token = _lower(rule.shown(text[place:end]))
        if token:
            yield token
        place = end


def _furthest(rules: list[_Rule], text: str, place: int) -> tuple[re.Match[str], _Rule]:
    best, chosen = None, rules[-1]
    for rule in rules:
        match = rule.pattern.match(text, place)
        if match and (best is None or match.end() > best.end()):
            best, chosen = match, rule
    assert best is not None  # the last rule takes any character
    return best, chosen


def _units(text: str) -> str:
    """UTF-16 code units, as Java sees characters beyond the first plane."""
    wide = text.encode("utf-16-le", "surrogatepass")
    return "".join(chr(int.from_bytes(wide[i : i + 2], "little")) for i in range(0, len(wide), 2))


def _lower(token: str) -> str:
    if token.isascii():
        return token.lower()
    token = token.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return (_RUN.sub(_sigmas, token) if "Σ" in token else token).lower()


def _sigmas(run: re.Match[str]) -> str:
    """Java's small sigmas: the final one where a cased letter comes before and none after."""
    cased = [unicodedata.category(c) in ("Lu", "Ll", "Lt") or "ʰ" <= c <= "ʸ" for c in run[0]]
    return "".join(
        letter if letter != "Σ" else "ς" if any(cased[:i]) and not any(cased[i + 1 :]) else "σ"
        for i, letter in enumerate(run[0])
    )
