"""The gallery in Prefect's UI: the scores, and a few images of each order."""

from collections.abc import Iterator

from configs.schema import EvaluateConfig
from tasks.data.markup import cell, table
from tasks.metrics import report
from tasks.metrics.gallery.cards import Card, Gallery, Said

TITLES = {
    "worst": "Worst",
    "best": "Best",
    "lost": "Lost most",
    "gained": "Gained most",
    "others": "Some others",
}
_IMAGES = 3


def markdown(gallery: Gallery, config: EvaluateConfig, page: str) -> str:
    """Both models' scores, then pictures of `test`, `golden` and `current`; `page` leads to all."""
    models = {"": gallery.candidate}
    if gallery.champion:
        models[gallery.names["champion"]] = gallery.champion
    blocks = [
        *(f"**{note}**" for note in report.collapses(gallery.candidate)),
        f"All of it, with the run in MLflow: {page}",
        report.scores(models),
        report.INTERVAL,
        *report.absent(gallery.candidate, config),
    ]
    for name, orders in gallery.picks.items():
        if name not in config.slices:
            blocks += [f"## {name}", *_orders(gallery, orders)]
    return "\n\n".join(blocks) + "\n"


def _orders(gallery: Gallery, orders: dict[str, list[int]]) -> Iterator[str]:
    for order, places in orders.items():
        if places:
            yield f"### {TITLES[order]}"
            yield table(
                ["", "CIDEr", "caption, and a reference"],
                [_row(gallery.cards[place]) for place in places[:_IMAGES]],
            )


def _row(card: Card) -> list[str]:
    said = [_told(card.candidate, "**")]
    if card.champion:
        said.append(f"champion: {_told(card.champion, '')}")
    return [
        f"![{cell(card.references[0])}]({card.picture})",
        f"{card.candidate.scores['cider']:.2f}"
        + ("" if card.change is None else f" ({card.change:+.2f})"),
        "<br>".join([*said, cell(card.references[0])]),
    ]


def _told(said: Said, mark: str) -> str:
    return f"{mark}{cell(said.caption)}{mark}" if said.caption else "(nothing)"
