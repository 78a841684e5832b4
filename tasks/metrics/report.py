"""An evaluation in words and tables, as Prefect's UI shows them."""

from collections.abc import Iterator, Mapping

from configs.schema import EvaluateConfig
from tasks.data.markup import cell, table
from tasks.metrics.diversity import Diversity
from tasks.metrics.evaluation import Cost, Evaluation, SliceEvaluation

INTERVAL = "In brackets: 95 % bootstrap interval over the images."


def markdown(evaluation: Evaluation, config: EvaluateConfig) -> str:
    """Scores of every slice, how varied the captions are, and what they cost."""
    blocks = [
        *(f"**{note}**" for note in collapses(evaluation)),
        scores({"": evaluation}),
        INTERVAL,
        *absent(evaluation, config),
        "## How varied the captions are",
        _diversity(evaluation),
        *([_cost(evaluation.cost)] if evaluation.cost else []),
    ]
    return "\n\n".join(blocks) + "\n"


def scores(models: Mapping[str, Evaluation]) -> str:
    """A table with a row for each slice and model; one model may go without a name."""
    names = dict.fromkeys(name for found in models.values() for name in found.slices)
    metrics = list(next(iter(next(iter(models.values())).slices.values())).corpus)
    rows = [
        [f"{name} {cell(model)}".strip(), len(part.image_ids), *_figures(part, metrics)]
        for name in names
        for model, found in models.items()
        if (part := found.slices.get(name))
    ]
    return table(["slice", "images", *metrics], rows)


def collapses(evaluation: Evaluation) -> list[str]:
    """What is wrong with the captions of a slice, where something is."""
    verdicts = {name: part.diversity() for name, part in evaluation.slices.items()}
    return [
        f"Collapsed on {name}: {cell(' '.join(verdict.reasons), 1000)}"
        for name, verdict in verdicts.items()
        if verdict.collapsed
    ]


def absent(evaluation: Evaluation, config: EvaluateConfig) -> list[str]:
    """Which of the config's slices have no image."""
    return [
        f"Slice {name} has no scores: none of the test images meets its conditions."
        for name in config.slices
        if name not in evaluation.slices
    ]


def _figures(part: SliceEvaluation, metrics: list[str]) -> Iterator[str]:
    for metric in metrics:
        value, interval = part.corpus[metric], part.intervals.get(metric)
        around = f" ({interval.low:.3f} to {interval.high:.3f})" if interval else ""
        yield f"{value:.3f}{around}"


def _diversity(evaluation: Evaluation) -> str:
    head = ["captions of", *("distinct-1", "distinct-2", "repeated", "commonest"), "looping"]
    rows = []
    for name, part in evaluation.slices.items():
        verdict = part.diversity()
        rows.append([name, *_shares(verdict.predictions)])
        if verdict.references:
            rows.append([f"{name}, by people", *_shares(verdict.references)])
    return table([*head, "empty", "words"], rows)


def _shares(found: Diversity) -> Iterator[str]:
    yield from (f"{share:.3f}" for share in found.distinct)
    yield f"{found.repeated:.0%}"
    yield f"{found.commonest_share:.0%} “{cell(found.commonest)}”"
    yield from (f"{share:.0%}" for share in (found.looping, found.empty))
    lengths = found.lengths
    yield f"{lengths.shortest} to {lengths.longest}, median {lengths.median:g}"


def _cost(cost: Cost) -> str:
    return (
        f"One image alone takes {1000 * cost.latency_seconds:.1f} ms on {cost.device}; "
        f"the model is {cost.size_bytes / 1e6:,.1f} MB."
    )
