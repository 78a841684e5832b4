"""The gallery as one self-contained HTML page, the same bytes for the same evaluations."""

from pathlib import Path

from configs.schema import EvaluateConfig
from tasks.data.markup import template
from tasks.metrics.gallery.cards import Gallery
from tasks.metrics.gallery.markdown import TITLES

METRICS = {"cider": "CIDEr", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L"}


def render(gallery: Gallery, config: EvaluateConfig) -> str:
    """The page; whatever a model or a person wrote is escaped."""
    compared = gallery.champion is not None
    return template(Path(__file__).with_name("page.html.j2")).render(
        gallery=gallery,
        metrics=METRICS,
        orders={
            order: title
            for order, title in TITLES.items()
            if compared or order not in ("lost", "gained")
        },
        collapsed={n: v.reasons for n, v in gallery.diversity.items() if v.collapsed},
        absent=[name for name in config.slices if name not in gallery.candidate.slices],
    )
