"""Caption tokens the way the COCO evaluation counts them.

The target is Stanford's PTBTokenizer with `-preserveLines -lowerCase`, less the punctuation that
the COCO scripts drop. Everyday English captions come out equal; rarities (emoticons, exotic
abbreviations) may not.
"""

import re

_ABBREVIATIONS = (
    "mr mrs ms dr st jr sr prof gen col capt lt sgt rev hon gov sen rep mt ft ave blvd rd vs etc "
    "inc ltd co corp bros dept est jan feb mar apr jun jul aug sep sept oct nov dec"
)
_CLITIC = r"(?i:'(?:s|re|ve|ll|d|m)(?![^\W_]))"

# First match wins. Case still matters here ("Plan B. The" is not an initial), so text is
# lower-cased only afterwards; curly quotes are straight by now.
_TOKEN = re.compile(
    rf"""
    https?://\S+ | www\.\S+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+      # addresses
  | </?[A-Za-z][^<>\s]*>                                        # tags
  | (?:[^\W\d_]\.){{2,}}(?![^\W_])                              # u.s., p.m.
  | (?i:ph\.d\.)
  | [A-Z]+&[A-Z]+(?![^\W_])                                      # AT&T
  | (?i:{"|".join(_ABBREVIATIONS.split())})\.(?![^\W_])
  | (?i:no\.)(?=\s+\d)                                          # no. 5
  | [A-Z]\.(?=\s+(?!(?:A|An|The|He|She|It|They|We|In|On|There|This|Two)\b)\S)    # J. Smith
  | \d+:\d\d(?=(?i:am|pm)\b)                                    # 10:30 of 10:30am
  | (?:(?<!\S)[-+])?(?<!\w)\d+(?:[.,:/-]\d+)+(?![^\W_])         # 1,000 2.5 10:30 1/2
  | (?<!\S)[-+]\d+(?![^\W_])
  | (?i:can)(?=not\b) | (?i:gon|wan)(?=na\b) | (?i:got)(?=ta\b)
  | (?i:lem|gim)(?=me\b) | (?i:d)(?='ye\b)
  | [^\W_]+?(?=(?i:n't)(?![^\W_])) | (?i:n't)(?![^\W_])         # ca n't
  | {_CLITIC}
  | (?i:'t)(?=(?:is|was)\b) | (?i:y')(?=all\b)
  | (?i:o'clock|ma'am|c'mon|o'er|'em|'til|'till|'cause|'bout|'\d\ds)(?![^\W_])
  | (?i:[dlo]'[^\W\d_]{{2,}})
  | (?i:'n') | [^\W\d_]+(?=(?i:'n'))                                     # rock 'n' roll
  | [^\W_]+(?:(?:[-/_]|[.](?=[^\W\d_]{{2,}}))[^\W_]+)*          # t-shirt, 3-year-old, and/or
  | \.(?:\s?\.)+ | -{{2,}} | [!?]+ | \#[A-Za-z]\w* | @\w+
  | \S
    """,
    re.VERBOSE,
)
_STRAIGHT = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "..."}
)
_BRACKETS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
}
# What the COCO evaluation drops in effect: its list names "-LRB-" and its like in capitals, which
# never match the lower-cased tokens, so brackets count as words. Runs such as "!!" stay, too.
_DROPPED = frozenset("'\"`.?!,:-;")


def tokenize(caption: str) -> list[str]:
    """Lower-case tokens of one caption, without the punctuation that scores ignore."""
    found = _TOKEN.findall(caption.translate(_STRAIGHT))
    return [_BRACKETS.get(token, token).lower() for token in found if not _is_dropped(token)]


def _is_dropped(token: str) -> bool:
    return token in _DROPPED or (len(token) > 1 and not token.strip("-. "))
