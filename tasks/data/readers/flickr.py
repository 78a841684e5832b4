"""Flickr8k.token.txt and results_20130124.token: a caption a line, `image.jpg#0<TAB>caption`."""

import re
from collections.abc import Iterator

from configs.schema import FlickrTokenSource
from tasks.data.readers.caption_file import Folder, gathered
from tasks.data.readers.text import text_lines
from tasks.data.rows import Row

TOKEN = re.compile(r"\s*(?P<name>.*\S)#\d+\s*\t(?P<caption>.*)", re.DOTALL)


def read_flickr_token(source: FlickrTokenSource) -> Iterator[Row]:
    """The images that the lines name, in the order in which they get complete; then the others."""
    folder = Folder(source)

    def rows() -> Iterator[Row]:
        lines = enumerate(text_lines(source), 1)
        return (_row(text, number, folder) for number, text in lines if text.strip())

    yield from gathered(rows)
    yield from folder.uncaptioned()


def _row(text: str, number: int, folder: Folder) -> Row:
    where = f"line {number}"
    token = TOKEN.fullmatch(text)
    if token:
        return folder.row(token["name"], (token["caption"].strip(),), None, where)
    problem = "no image#number before a tab"
    return folder.malformed(number, where, problem, [text.partition("\t")[2]], text)
