"""Whether a candidate may replace the champion: a pure function from two evaluations."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from configs.schema import GateConfig
from tasks.metrics.evaluation import Evaluation, SliceEvaluation
from tasks.metrics.statistics import Interval, paired_bootstrap
from tasks.refs import Verdict

Decision = Literal["promote", "reject", "needs_approval"]

_SEED = 20_131  # any fixed number: the same evaluations must always get the same verdict


@dataclass(frozen=True)
class Comparison:
    """Mean per-image CIDEr of both models over the images that both were evaluated on."""

    champion: float
    candidate: float
    difference: Interval
    num_shared: int
    same_images: bool


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
    """Decides; every input has a verdict, none raises.

    A first model must clear `config.floors` on `test`; with none set, a person decides. Later ones
    must be better than the champion on `current` (else `test`) and not worse than `config.margin`
    on every other slice. What cannot be compared soundly goes to a person; a candidate that fails
    is rejected whatever else holds.
    `champion` is None where it has no readable evaluation.
    """
    broken = _broken(candidate)
    if candidate is None or broken:
        findings = broken
    elif not champion_exists:
        findings = _against_floors(candidate, config)
    elif champion is None:
        findings = [
            _Finding("needs_approval", "The champion's evaluation can't be read: nothing to beat.")
        ]
    else:
        findings = _against_champion(candidate, champion, config)
    decisions = {finding.decision for finding in findings}
    ranked: tuple[Decision, ...] = ("reject", "needs_approval", "promote")
    return Verdict(
        decision=next(decision for decision in ranked if decision in decisions),
        reasons=tuple(finding.reason for finding in findings),
    )


def compare(
    candidate: Evaluation, champion: Evaluation, config: GateConfig
) -> dict[str, Comparison]:
    """The paired comparison on every slice where the two share at least one image."""
    comparisons = {}
    for name in sorted(candidate.slices.keys() & champion.slices.keys()):
        new, old = _cider_by_image(candidate.slices[name]), _cider_by_image(champion.slices[name])
        shared = sorted(new.keys() & old.keys())
        if shared:
            ours = np.array([new[image_id] for image_id in shared])
            theirs = np.array([old[image_id] for image_id in shared])
            comparisons[name] = Comparison(
                champion=float(theirs.mean()),
                candidate=float(ours.mean()),
                difference=paired_bootstrap(
                    ours,
                    theirs,
                    resamples=config.resamples,
                    confidence=config.confidence,
                    seed=_SEED,
                ),
                num_shared=len(shared),
                same_images=new.keys() == old.keys(),
            )
    return comparisons


def _cider_by_image(evaluated: SliceEvaluation) -> dict[str, float]:
    scores = evaluated.per_image.get("cider", np.empty(0))
    return dict(zip(evaluated.image_ids, scores.tolist(), strict=False))


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


def _against_floors(candidate: Evaluation, config: GateConfig) -> list[_Finding]:
    if not config.floors:
        reason = "There is no champion yet and gate.floors is empty: nothing to judge by."
        findings = [_Finding("needs_approval", reason)]
    else:
        findings = [_Finding("promote", "There is no champion yet: the floors decide.")]
    num_images = len(candidate.slices["test"].image_ids)
    if num_images < config.min_images:
        reason = f"test: only {num_images} images, gate.min_images asks for {config.min_images}."
        findings.append(_Finding("needs_approval", reason))
    corpus = candidate.slices["test"].corpus
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


def _against_champion(
    candidate: Evaluation, champion: Evaluation, config: GateConfig
) -> list[_Finding]:
    names = candidate.slices.keys() | champion.slices.keys()
    must_win = "current" if "current" in names else "test"
    comparisons = compare(candidate, champion, config)
    findings = []
    for name in sorted(names, key=lambda name: (name != must_win, name)):
        comparison = comparisons.get(name)
        if comparison is None:
            reason = f"{name}: candidate and champion share no image with CIDEr scores."
            findings.append(_Finding("needs_approval", reason))
            continue
        if not comparison.same_images:
            reason = f"{name}: the images differ, compared on the {comparison.num_shared} shared."
            findings.append(_Finding("promote", reason))
        findings.append(_on_slice(name, comparison, config, must_win=name == must_win))
    return findings


def _on_slice(name: str, comparison: Comparison, config: GateConfig, *, must_win: bool) -> _Finding:
    difference = comparison.difference
    figures = (
        f"{name}: CIDEr {comparison.champion:.2f} → {comparison.candidate:.2f}, "
        f"difference {difference.mean:+.2f} ({100 * config.confidence:g} % interval "
        f"{difference.low:+.2f} to {difference.high:+.2f})"
    )
    if not math.isfinite(difference.low):
        return _Finding("needs_approval", f"{figures}: the champion's scores are not all numbers.")
    if comparison.num_shared < config.min_images:
        few = f"only {comparison.num_shared} shared images, {config.min_images} are needed"
        return _Finding("needs_approval", f"{figures}: {few}.")
    if must_win:
        if difference.low > 0:
            return _Finding("promote", f"{figures}: better.")
        return _Finding("reject", f"{figures}: not clearly better.")
    if difference.low > -config.margin:
        return _Finding("promote", f"{figures}: not worse than the margin {config.margin:g}.")
    return _Finding("reject", f"{figures}: may be worse than the margin {config.margin:g}.")
