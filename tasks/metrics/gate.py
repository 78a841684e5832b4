"""Whether a candidate may replace the champion: a pure function from two evaluations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from configs.schema import GateConfig
from tasks.metrics.evaluation import Evaluation, SliceEvaluation
from tasks.metrics.statistics import BootstrapT, Interval, holm, sign_flip_p_value
from tasks.refs import Verdict

Decision = Literal["promote", "reject", "needs_approval"]

POWER = 0.9  # of the differences that reasons call detectable
MIN_DIFFERENT = 50  # images that differ in score; fewer don't say how such differences spread

_RANKED: tuple[Decision, ...] = ("reject", "needs_approval", "promote")
_SEED = 20_131  # any fixed number: the same evaluations must always get the same verdict


@dataclass(frozen=True)
class Comparison:
    """Mean per-image CIDEr of both models over the images that both were evaluated on.

    What is to be shown is a true difference above `-margin`, at `level`; the margin is 0 where the
    candidate must be better. `difference` has `level` beyond each bound. `adjusted` is the p-value
    by Holm's rule over all slices, `detectable` how far above `-margin` a difference is shown with
    90 % power by so many images, whatever the other slices say.
    """

    champion: float
    candidate: float
    difference: Interval
    margin: float
    level: float
    p_value: float
    adjusted: float
    detectable: float
    num_shared: int
    num_different: int
    same_images: bool

    @property
    def shown(self) -> bool:
        return self.adjusted <= self.level

    def figures(self) -> dict[str, float | None]:
        """Flat, for JSON, which knows neither NaN nor infinity: they become None."""
        figures = {
            "champion": self.champion,
            "candidate": self.candidate,
            "difference": self.difference.mean,
            "low": self.difference.low,
            "high": self.difference.high,
            "margin": self.margin,
            "level": self.level,
            "p_value": self.p_value,
            "adjusted": self.adjusted,
            "detectable": self.detectable,
            "images": self.num_shared,
            "shown": self.shown,
        }
        return {name: value if math.isfinite(value) else None for name, value in figures.items()}


@dataclass(frozen=True)
class _Finding:
    decision: Decision
    reason: str


def judge(
    candidate: Evaluation | None,
    champion: Evaluation | None,
    config: GateConfig,
    *,
    champion_exists: bool,
) -> Verdict:
    """Decides; every input has a verdict, none raises. The reasons that decided come first.

    Every candidate must clear `config.floors` on `test` and keep the budgets. A later one must also
    be better than the champion on `config.superior_on` and not worse than a margin on every other
    slice. What can't be judged soundly, or looks collapsed, goes to a person; a candidate that
    fails is rejected whatever else holds.
    `champion` is None where it has no readable evaluation.
    """
    broken = _broken(candidate)
    if candidate is None or broken:
        findings = broken
    else:
        if not champion_exists:
            findings = _as_first(candidate, config)
        elif champion is None:
            reason = "The champion's evaluation can't be read: nothing to beat."
            findings = [_Finding("needs_approval", reason)]
        else:
            findings = _against_champion(candidate, champion, config)
        findings += _against_floors(candidate, config)
        findings += _against_budgets(candidate, config)
        findings += _collapsed(candidate.slices["test"])
    findings.sort(key=lambda finding: _RANKED.index(finding.decision))
    return Verdict(
        decision=findings[0].decision, reasons=tuple(finding.reason for finding in findings)
    )


def compare(
    candidate: Evaluation, champion: Evaluation, config: GateConfig
) -> dict[str, Comparison]:
    """The paired comparison on every slice where the two share at least one image.

    A candidate is promoted when all is shown, which alone keeps the chance of a wrong promotion to
    the level of whatever is wrong. Holm's rule on top makes each single "better" and "not worse"
    one to rely on, however many slices there are.
    """
    won = _superior_on(candidate, champion, config)
    pairs = {
        name: found
        for name in sorted(_judged(candidate, config) & _judged(champion, config))
        if (found := _Pairs.of(candidate.slices[name], champion.slices[name])).images
    }
    alone = {
        name: found.compared(
            margin=0.0 if name == won else config.margins.get(name, config.margin),
            level=config.alpha if name == won else config.margin_alpha,
            slices=len(pairs),
            resamples=config.resamples,
        )
        for name, found in pairs.items()
    }
    adjusted = holm(
        {name: comparison.p_value for name, comparison in alone.items()},
        {name: comparison.level for name, comparison in alone.items()},
    )
    return {name: replace(found, adjusted=adjusted[name]) for name, found in alone.items()}


def table(comparisons: Mapping[str, Comparison]) -> str:
    """The figures of the comparisons in markdown; nothing where there are none."""
    if not comparisons:
        return ""
    header = "slice champion candidate difference interval p adjusted needed images detects shown"
    columns = header.split()
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for name, c in comparisons.items():
        difference = c.difference
        cells = [
            *(name, f"{c.champion:.3f}", f"{c.candidate:.3f}", f"{difference.mean:+.3f}"),
            f"{difference.low:+.3f} … {difference.high:+.3f}",
            *(f"{c.p_value:.2g}", f"{c.adjusted:.2g}", f"{c.level:g}", f"{c.num_shared:,}"),
            f"{c.detectable:.3f}",
            ("better" if not c.margin else f"not worse by {c.margin:g}") if c.shown else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Pairs:
    """CIDEr of the images that both models were scored on, in one order."""

    candidate: np.ndarray
    champion: np.ndarray
    same_images: bool

    @classmethod
    def of(cls, candidate: SliceEvaluation, champion: SliceEvaluation) -> "_Pairs":
        new, old = _cider_by_image(candidate), _cider_by_image(champion)
        shared = sorted(new.keys() & old.keys())
        return cls(
            candidate=np.array([new[image_id] for image_id in shared]),
            champion=np.array([old[image_id] for image_id in shared]),
            same_images=new.keys() == old.keys(),
        )

    @property
    def images(self) -> int:
        return len(self.candidate)

    def compared(self, *, margin: float, level: float, slices: int, resamples: int) -> Comparison:
        """Both tests must agree: either alone promotes too much on some real distribution
        (tests/benchmarks/RESULTS.md). Scores that are no numbers show nothing."""
        differences = self.candidate - self.champion
        if not np.isfinite(differences).all():
            differences = np.full(self.images, math.nan)  # so is whatever follows from them
        num_different = int((differences != 0).sum())
        telling, share = differences, 1.0
        if not margin and num_different:
            # Equal scores say nothing of which model is better; as values they skew the bootstrap.
            telling, share = differences[differences != 0], num_different / self.images
        bootstrap = BootstrapT.of(telling, resamples=resamples, seed=_SEED)
        p_value = 1.0
        if math.isfinite(bootstrap.error):
            flipped = sign_flip_p_value(telling + margin, resamples=resamples, seed=_SEED)
            p_value = max(flipped, bootstrap.p_value(-margin))
        bounds = bootstrap.interval(level)
        return Comparison(
            champion=float(self.champion.mean()),
            candidate=float(self.candidate.mean()),
            difference=Interval(share * bounds.mean, share * bounds.low, share * bounds.high),
            margin=margin,
            level=level,
            p_value=p_value,
            adjusted=p_value,
            # Over the slices: the strictest that Holm's rule can ask for.
            detectable=share * bootstrap.detectable(level / slices, POWER),
            num_shared=self.images,
            num_different=num_different,
            same_images=self.same_images,
        )


def _cider_by_image(evaluated: SliceEvaluation) -> dict[str, float]:
    scores = evaluated.per_image.get("cider", np.empty(0))
    return dict(zip(evaluated.image_ids, scores.tolist(), strict=False))


def _judged(evaluation: Evaluation, config: GateConfig) -> set[str]:
    return evaluation.slices.keys() - set(config.ignored)


def _superior_on(candidate: Evaluation, champion: Evaluation, config: GateConfig) -> str:
    evaluated = candidate.slices.keys() | champion.slices.keys()
    return config.superior_on or ("current" if "current" in evaluated else "test")


def _broken(candidate: Evaluation | None) -> list[_Finding]:
    """Why the candidate can't be judged at all."""
    if candidate is None:
        return [_Finding("reject", "The candidate's evaluation can't be read.")]
    reasons = []
    if "test" not in candidate.slices:
        reasons.append("The candidate was not evaluated on test.")
    for name, evaluated in candidate.slices.items():
        scores = evaluated.per_image.get("cider", np.empty(0))
        if not len(scores):
            reasons.append(f"{name}: the candidate has no CIDEr scores.")
        elif not np.isfinite(scores).all():
            bad = int((~np.isfinite(scores)).sum())
            reasons.append(f"{name}: CIDEr is not a number on {bad} of {len(scores)} images.")
    return [_Finding("reject", reason) for reason in reasons]


def _as_first(candidate: Evaluation, config: GateConfig) -> list[_Finding]:
    if not config.floors:
        reason = "There is no champion yet and gate.floors is empty: nothing to judge by."
        findings = [_Finding("needs_approval", reason)]
    else:
        findings = [_Finding("promote", "There is no champion yet: the floors decide.")]
    num_images = len(candidate.slices["test"].image_ids)
    if num_images < config.min_images:
        reason = f"test: only {num_images} images, gate.min_images asks for {config.min_images}."
        findings.append(_Finding("needs_approval", reason))
    return findings


def _against_floors(candidate: Evaluation, config: GateConfig) -> list[_Finding]:
    corpus = candidate.slices["test"].corpus
    findings = []
    for metric, floor in config.floors.items():
        value = corpus.get(metric, math.nan)
        if not math.isfinite(value):
            reason = f"test: {metric} is missing, the floor is {floor:.2f}."
            findings.append(_Finding("reject", reason))
        elif value < floor:
            reason = f"test: {metric} {value:.2f} is below the floor {floor:.2f}."
            findings.append(_Finding("reject", reason))
        else:
            reason = f"test: {metric} {value:.2f} clears the floor {floor:.2f}."
            findings.append(_Finding("promote", reason))
    return findings


def _against_budgets(candidate: Evaluation, config: GateConfig) -> list[_Finding]:
    cost = candidate.cost
    latency = size = None
    if cost is not None:
        latency, size = cost.latency_seconds, float(cost.size_bytes)
    budgets = (
        ("latency", "seconds", latency, config.max_latency_seconds),
        ("size", "bytes", size, config.max_size_bytes),
    )
    findings = []
    for what, unit, value, budget in budgets:
        if budget is None:
            continue
        limit = f"gate.max_{what}_{unit} is {budget:,}"
        if value is None or not math.isfinite(value):
            reason = f"The candidate's {what} was not measured, {limit}."
            findings.append(_Finding("needs_approval", reason))
        else:
            reason = f"The candidate's {what} is {value:,.4g} {unit}, {limit}."
            findings.append(_Finding("promote" if value <= budget else "reject", reason))
    return findings


def _collapsed(test: SliceEvaluation) -> list[_Finding]:
    """Captions that are all alike, or none: a high score doesn't excuse them without a person."""
    return [
        _Finding("needs_approval", f"test: the captions have collapsed: {reason}")
        for reason in test.diversity().reasons
    ]


def _against_champion(
    candidate: Evaluation, champion: Evaluation, config: GateConfig
) -> list[_Finding]:
    won = _superior_on(candidate, champion, config)
    comparisons = compare(candidate, champion, config)
    findings = []
    for name in sorted(
        {won} | _judged(candidate, config) | _judged(champion, config),
        key=lambda name: (name != won, name),
    ):
        comparison = comparisons.get(name)
        if comparison is None:
            reason = f"{name}: {_not_compared(name, candidate, champion)}."
            findings.append(_Finding("needs_approval", reason))
            continue
        findings.append(_on_slice(name, comparison, config))
        if not comparison.same_images:
            reason = f"{name}: the images differ, compared on the {comparison.num_shared} shared."
            findings.append(_Finding("promote", reason))
    return findings


def _not_compared(name: str, candidate: Evaluation, champion: Evaluation) -> str:
    having = [
        side
        for side, evaluated in (("candidate", candidate), ("champion", champion))
        if name in evaluated.slices
    ]
    if len(having) == 2:
        return "candidate and champion share no image with CIDEr scores"
    return f"{'only the ' + having[0] if having else 'neither model'} was evaluated on it"


def _on_slice(name: str, comparison: Comparison, config: GateConfig) -> _Finding:
    figures = f"{name}: {_in_words(comparison, config)}"
    if not math.isfinite(comparison.difference.low):
        return _Finding("needs_approval", f"{figures}: the champion's scores are not all numbers.")
    if comparison.num_shared < config.min_images:
        few = f"only {comparison.num_shared} shared images, {config.min_images} are needed"
        return _Finding("needs_approval", f"{figures}: {few}.")
    judged = _not_worse if comparison.margin else _better
    decision, meaning = judged(comparison, config.min_images)
    return _Finding(decision, f"{figures}: {meaning}.")


def _better(comparison: Comparison, min_images: int) -> tuple[Decision, str]:
    if not comparison.num_different:
        return "reject", "no different, both score the same on every image"
    few, told = _detects(comparison, min_images)
    if comparison.shown:
        return ("needs_approval", f"better, but {told}") if few else ("promote", "better")
    found = "worse" if comparison.difference.high < 0 else "not shown to be better"
    return "reject", f"{found}; {told}"


def _not_worse(comparison: Comparison, min_images: int) -> tuple[Decision, str]:
    """Not shown, a person decides where the slice is too small to have shown it of an equal model:
    one whose true difference is 0, a margin away from what is tested."""
    margin = f"the margin {comparison.margin:g}"
    if comparison.shown:
        return "promote", f"not worse than {margin}"
    if comparison.difference.mean <= -comparison.margin:
        return "reject", f"probably worse than {margin}"
    few, told = _detects(comparison, min_images)
    untold = few or comparison.num_different < MIN_DIFFERENT
    if untold or comparison.detectable > comparison.margin:
        return "needs_approval", f"too few to tell of {margin}; {told}"
    return "reject", f"may be worse than {margin}; {told}"


def _detects(comparison: Comparison, min_images: int) -> tuple[bool, str]:
    """Whether too few images tell the models apart for the tests to be relied on; in words, too."""
    images, different = comparison.num_shared, comparison.num_different
    if different < min_images:
        return True, f"only {different} of {images:,} images differ in score, {min_images} should"
    if different < MIN_DIFFERENT:
        return False, f"only {different} of {images:,} images differ in score: too few to say more"
    power = f"{100 * POWER:g} % power"
    return False, f"{images:,} images like these detect {comparison.detectable:.3f} with {power}"


def _in_words(comparison: Comparison, config: GateConfig) -> str:
    difference, level = comparison.difference, comparison.level
    least = comparison.p_value <= 1 / (config.resamples + 1)
    return (
        f"CIDEr {comparison.champion:.3f} → {comparison.candidate:.3f}, "
        f"difference {difference.mean:+.3f} on {comparison.num_shared:,} images "
        f"({100 - 200 * level:g} % interval {difference.low:+.3f} to {difference.high:+.3f}, "
        f"p {'≤' if least else '='} {comparison.adjusted:.2g}, needed {level:g})"
    )
