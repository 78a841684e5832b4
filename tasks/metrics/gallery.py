"""The best, the worst and some ordinary captions beside their pictures: markdown and HTML."""

import base64
import html
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tasks.data.prepared import Split
from tasks.metrics.evaluation import SliceEvaluation

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color-scheme:light dark}td{padding:.6rem 1rem .6rem 0;vertical-align:top;"
    "border-bottom:1px solid #8884}img{width:96px;image-rendering:pixelated}small{opacity:.7}"
)


@dataclass(frozen=True)
class Example:
    """One image of the gallery."""

    image: str  # a data: URI
    prediction: str
    references: list[str]
    cider: float


def pick(images: Split, evaluation: SliceEvaluation, count: int) -> dict[str, list[Example]]:
    """A third each of the best, the middle and the worst by CIDEr."""
    cider = evaluation.per_image["cider"]
    order = np.argsort(cider, kind="stable")
    third = min(max(1, count // 3), len(order))
    middle = (len(order) - third) // 2
    chosen = {
        "Worst": order[:third],
        "Middle": order[middle : middle + third],
        "Best": order[::-1][:third],
    }
    return {
        title: [
            Example(
                image=data_uri(images.pixels[i]),
                prediction=evaluation.predictions[i],
                references=evaluation.references[i],
                cider=float(cider[i]),
            )
            for i in indices
        ]
        for title, indices in chosen.items()
    }


def markdown(examples: dict[str, list[Example]]) -> str:
    """Tables for a Prefect artifact."""
    lines: list[str] = []
    for title, group in examples.items():
        lines += [
            f"### {title}",
            "",
            "| | CIDEr | caption, and a reference |",
            "| --- | --- | --- |",
        ]
        for e in group:
            said, expected = _cell(e.prediction), _cell(e.references[0])
            lines.append(f"| ![]({e.image}) | {e.cider:.2f} | **{said}**<br>{expected} |")
        lines.append("")
    return "\n".join(lines)


def page(title: str, examples: dict[str, list[Example]]) -> str:
    """One self-contained HTML page."""
    return "\n".join(_page_lines(title, examples))


def data_uri(pixels: np.ndarray) -> str:
    """A PNG of uint8 [H, W, 3] as a `data:` URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _page_lines(title: str, examples: dict[str, list[Example]]) -> Iterator[str]:
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
    yield f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
    for heading, group in examples.items():
        yield f"<h2>{html.escape(heading)}</h2><table>"
        for example in group:
            references = "<br>".join(html.escape(r) for r in example.references)
            yield (
                f"<tr><td><img alt='' src='{example.image}'><td><b>"
                f"{html.escape(example.prediction)}</b><br>CIDEr {example.cider:.2f}"
                f"<td><small>{references}</small>"
            )
        yield "</table>"
    yield "</html>"


def _cell(text: str) -> str:
    """Text that neither ends a table cell nor becomes markup."""
    return html.escape(" ".join(text.split())).replace("|", "&#124;").replace("[", "&#91;")
