"""How often the gate errs: `python -m tests.benchmarks.bench_gate [--comparisons N] [EVAL EVAL]`.

Thousands of comparisons go through `judge`. Their images are drawn from real per-image CIDErs, of
people as models: one of an image's captions against the others, on Flickr8k's captions (where they
are) and on the drawn scenes; of two real models where two folders of evaluations of the same images
are named. The truth is known: the candidate's scores are shifted, on the images where the models
differ, until the mean over all images is what it should be.

On the same draws, what others do: promotion where the mean is no lower (`>=`), and the percentile
bootstrap, 95 % both sides, with the same margins (this gate's, once).
"""

import argparse
import functools
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from configs.schema import GateConfig
from tasks.data.scenes import scene
from tasks.metrics.evaluation import Evaluation, SliceEvaluation
from tasks.metrics.gate import MIN_DIFFERENT, compare, judge
from tasks.metrics.scores import score
from tests.benchmarks.bench_metrics import CAPTIONS, real_captions

RESAMPLES = 2000  # fewer than by default, which costs power and no error
SCENES = 4000
COMPARISONS = 300  # a case: some minutes in all
SHARES = {50: 1.0, 100: 1.0, 300: 1.0, 1000: 0.3}  # of them, by images
MOST, OF_MOST = 5000, 0.1  # for the first pair alone
ALL, SUBSETS = ("test", "current"), ("test", "current", "golden", "small", "people")
TRUTHS = (EQUAL, WORSE, BETTER, NOT_WORSE) = (
    "equal",
    "worse by the margin",
    "better by what is detectable",
    "not worse by what is detectable",
)
CLEARLY = 3.0  # better, where it should not matter


class NothingStated(Exception):
    """Too few images differ in score for the gate to say what it detects."""


Pair = tuple[np.ndarray, np.ndarray]  # champion and candidate, CIDEr of every image there is


@dataclass(frozen=True)
class Case:
    """Comparisons of one kind: on every slice so many images of a pair, and a truth."""

    pair: str
    slices: tuple[str, ...]
    images: int
    truth: str
    comparisons: int


@dataclass(frozen=True)
class Count:
    """How many of a case's comparisons ended so, and what it was about on average."""

    gate: int
    persons: int
    at_least: int
    percentile: int
    effect: float
    total: int


PAIRS: dict[str, Pair] = {}  # set before the workers are forked
MARGINS: dict[str, float] = {}


def people(captions: list[list[str]], name: str, margin: float) -> Iterator[tuple[str, Pair]]:
    """Two people; and one person against herself with others' captions, worse by the margin."""
    others = captions[1:] + captions[:1]
    first, second = (
        score([c[k] for c in captions], [c[:k] + c[k + 1 :] for c in captions]).per_image["cider"]
        for k in (0, 1)
    )
    wrong = score([c[0] for c in others], [c[1:] for c in captions]).per_image["cider"]
    share = margin / float((first - wrong).mean())
    mistaken = np.random.default_rng(0).random(len(first)) < share
    yield f"{name}: two people", (first, second)
    yield f"{name}: {share:.0%} wrong", (first, np.where(mistaken, wrong, first))
    yield f"{name}: {share:.0%} put right", (np.where(mistaken, wrong, first), first)


def evaluated(folders: list[str]) -> Pair:
    champion, candidate = (Evaluation.load(Path(folder)).slices["test"] for folder in folders)
    assert champion.image_ids == candidate.image_ids
    return champion.per_image["cider"], candidate.per_image["cider"]


def shifted(pair: Pair, difference: float) -> Pair:
    """The pair with that mean difference exactly; images of equal scores stay so."""
    champion, candidate = pair
    differ = champion != candidate
    by = (difference - float((candidate - champion).mean())) / differ.mean()
    return champion, candidate + by * differ


def won(case: Case) -> str:
    return "current" if "current" in case.slices else "test"


def slice_of(cider: np.ndarray) -> SliceEvaluation:
    """Scores alone: whether the captions have collapsed is not what is measured."""
    return SliceEvaluation.model_construct(
        image_ids=[str(i) for i in range(len(cider))],
        predictions=["a dog"],
        references=[["a dog"]],
        corpus={"cider": float(cider.mean())},
        per_image={"cider": cider},
    )


def drawn(
    case: Case,
    truth: Mapping[str, float],
    random: np.random.Generator,
    only: str | None = None,
) -> tuple[Evaluation, Evaluation]:
    """A candidate and a champion whose true differences are `truth`, by slice.

    Where one slice alone is asked for, the others have two images.
    """
    slices = {}
    for name in case.slices:
        champion, candidate = shifted(PAIRS[case.pair], truth[name])
        images = case.images if only in (None, name) else 2
        chosen = random.integers(0, len(champion), images)
        slices[name] = slice_of(candidate[chosen]), slice_of(champion[chosen])
    new, old = ({name: pair[k] for name, pair in slices.items()} for k in (0, 1))
    return Evaluation.model_construct(slices=new), Evaluation.model_construct(slices=old)


def truth_of(case: Case, config: GateConfig, random: np.random.Generator) -> dict[str, float]:
    """The true differences, by slice: the hardest of what the case is about.

    `detectable` is what the gate says, of other images that are alike, that so many detect; asked
    twice, since shifted scores are spread otherwise.
    """
    clearly = dict.fromkeys(case.slices, CLEARLY)
    if case.truth == EQUAL:
        return dict.fromkeys(case.slices, 0.0)
    if case.truth == WORSE:
        return clearly | {"test": -config.margin}
    name = "test" if case.truth == NOT_WORSE else won(case)
    truth = 0.0
    for _ in range(2):
        found = compare(*drawn(case, clearly | {name: truth}, random, name), config)[name]
        truth = found.detectable - found.margin
        if found.num_different < MIN_DIFFERENT:
            raise NothingStated
    return clearly | {name: truth}


@functools.cache
def weights(images: int) -> np.ndarray:
    random = np.random.default_rng(0)
    draws = (random.integers(0, images, images) for _ in range(RESAMPLES))
    return np.stack([np.bincount(draw, minlength=images) / images for draw in draws])


def percentile(candidate: Evaluation, champion: Evaluation, win: str, margin: float) -> bool:
    """Whether the bounds of the percentile bootstrap let the candidate through."""
    for name, new in candidate.slices.items():
        difference = new.per_image["cider"] - champion.slices[name].per_image["cider"]
        low = np.quantile(weights(len(difference)) @ difference, 0.025)
        if low <= (0 if name == win else -margin):
            return False
    return True


def counted(case: Case) -> Count:
    config = GateConfig(margin=MARGINS[case.pair], resamples=RESAMPLES)
    random = np.random.default_rng(list(repr(case).encode()))
    total, gate, persons, at_least, by_percentile, effect = 0, 0, 0, 0, 0, 0.0
    for _ in range(case.comparisons):
        try:
            truth = truth_of(case, config, random)
        except NothingStated:
            continue
        candidate, champion = drawn(case, truth, random)
        decision = judge(candidate, champion, config, champion_exists=True).decision
        new, old = (each.slices[won(case)].corpus["cider"] for each in (candidate, champion))
        total += 1
        gate += decision == "promote"
        persons += decision == "needs_approval"
        at_least += new >= old
        by_percentile += percentile(candidate, champion, won(case), config.margin)
        effect += min(truth.values())
    return Count(gate, persons, at_least, by_percentile, effect, total)


def cases(comparisons: int) -> Iterator[Case]:
    first = next(iter(PAIRS))
    for pair in PAIRS:
        for images, share in SHARES.items():
            yield from of_each_truth(pair, ALL, images, round(share * comparisons))
    yield from of_each_truth(first, ALL, MOST, round(OF_MOST * comparisons))
    yield from of_each_truth(first, ("test",), 300, comparisons)
    yield from of_each_truth(first, SUBSETS, 300, comparisons)


def of_each_truth(
    pair: str, slices: tuple[str, ...], images: int, comparisons: int
) -> Iterator[Case]:
    """Half as many comparisons where what is detectable must be asked first."""
    for truth in TRUTHS:
        if truth in (EQUAL, BETTER) or len(slices) > 1:
            few = truth in (BETTER, NOT_WORSE)
            yield Case(pair, slices, images, truth, comparisons // 2 if few else comparisons)


def line(case: Case, count: Count) -> str:
    total = count.total
    wilson = binomtest(count.gate, total).proportion_ci(method="wilson")
    cells = [
        *(case.pair, f"{len(case.slices)} × {case.images:,}", case.truth),
        f"{count.effect / total:+.3f}",
        f"{count.gate:,} of {total:,}",
        f"**{count.gate / total:.1%}** ({wilson.low:.1%} … {wilson.high:.1%})",
        f"{count.persons / total:.1%}",
        f"{count.at_least / total:.1%}",
        f"{count.percentile / total:.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def load_pairs(folders: list[str]) -> None:
    """Fills `PAIRS` and `MARGINS`."""
    photos = [captions for captions in real_captions() if len(captions) == 5]
    scenes = [list(scene(7, index, "day").references) for index in range(SCENES)]
    for name, captions, margin in (("photos", photos, 0.1), ("scenes", scenes, 0.4)):
        if name == "photos" and not CAPTIONS.exists():
            print("no photos' captions here: scenes alone", file=sys.stderr)
            continue
        random.Random(0).shuffle(captions)
        for told, pair in people(captions, name, margin):
            PAIRS[told], MARGINS[told] = pair, margin
    if folders:
        PAIRS["two models"], MARGINS["two models"] = evaluated(folders), 0.4


def main() -> None:
    parser = argparse.ArgumentParser(description="How often the gate errs.")
    parser.add_argument("--comparisons", type=int, default=COMPARISONS, help="(%(default)s) a case")
    parser.add_argument("evaluations", nargs="*", help="folders of two models' evaluations")
    asked = parser.parse_args()
    start = time.perf_counter()
    load_pairs(asked.evaluations)
    print(
        "| scores of | slices × images | candidate's truth | difference | promoted by the gate "
        "| rate (95 %) | to a person | by `>=` | by percentile |"
    )
    print("| --- " * 9 + "|")
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=fork) as pool:
        every = list(cases(asked.comparisons))
        for case, count in zip(every, pool.map(counted, every), strict=True):
            if 2 * count.total > case.comparisons:  # else the gate seldom states what it detects
                print(line(case, count), flush=True)
    total = sum(case.comparisons for case in every)
    print(f"\n{total:,} comparisons in {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
