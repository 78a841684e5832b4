"""Caption tokens as the COCO evaluation counts them, in Python alone.

Equal to Stanford's PTBTokenizer 3.4.1 with `-preserveLines -lowerCase`, less the punctuation that
`pycocoevalcap` drops; a caption is taken by itself, as if nothing followed it.
"""

import re
from itertools import chain

from tasks.metrics import treebank
from tasks.metrics.words import BEFORE_NUMBERS

# Its list names "-LRB-" and its like in capitals, which never match the lower-cased tokens, so
# brackets count as words. Runs such as "!!" stay, too.
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_REMEMBERED = 1 << 17  # pieces; a few dozen MB at most

# What may belong together across a space: numbers ("2 1/2"), tags, "Plan B. The", "No. 5".
_NEEDS_CONTEXT = re.compile(r"[\d<>()+]|[A-Za-z]\.$")
_A_WORD_AND_A_STOP = re.compile(rf"(?!{BEFORE_NUMBERS}\.)[A-Za-z]{{2,}}\.$")


class _NeedsContext(Exception):
    """A piece whose tokens depend on its neighbours."""


class _Pieces(dict[str, list[str]]):
    """The tokens of whatever stands between spaces, remembered."""

    def __missing__(self, piece: str) -> list[str]:
        if _NEEDS_CONTEXT.search(piece) and not _A_WORD_AND_A_STOP.match(piece):
            raise _NeedsContext
        if len(self) >= _REMEMBERED:
            self.clear()
        tokens = self[piece] = _kept(piece)
        return tokens


_PIECES = _Pieces()


def tokenize(caption: str) -> list[str]:
    """Lower-case tokens of one caption, without the punctuation that scores ignore."""
    if caption.isprintable():  # so the only space is " "
        try:
            return list(chain.from_iterable(map(_PIECES.__getitem__, caption.split())))
        except _NeedsContext:
            pass
    return _kept(caption)


def _kept(text: str) -> list[str]:
    return [token for token in treebank.split(text) if token not in _DROPPED]
