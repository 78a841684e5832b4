"""What strangers wrote, as it may stand on a page or in a table."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

_MOST_LETTERS = 160


def plain(text: str, most: int = _MOST_LETTERS) -> str:
    """Text on one line that shows what it holds: nothing invisible, no turned direction, an end."""
    text = " ".join(text[: 4 * most].split())
    joiners = "\u200c\u200d"  # emoji and many scripts need them
    text = "".join(c if c.isprintable() or c in joiners else "\ufffd" for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def cell(text: str, most: int = _MOST_LETTERS) -> str:
    """Text that is no markdown, HTML or link: whatever could start one becomes an entity."""
    return re.sub(r"[^\w ,]|_", lambda found: f"&#{ord(found[0])};", plain(text, most))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table; strings go in as they are."""
    lines = [head, ["---"] * len(head)]
    lines += [[f"{one:,}" if isinstance(one, int) else str(one) for one in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def template(path: Path, **filters: Callable[..., Any]) -> "jinja2.Template":
    """A page's template, which escapes whatever it is given."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, **filters}
    return environment.get_template(path.name)
