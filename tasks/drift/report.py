"""Has the world moved? One window against the reference: the verdict, told to people and events."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from configs.schema import MonitorConfig
from tasks.drift import drawing
from tasks.drift.detectors import Detection, TooFewPermutations, detector
from tasks.drift.kernel import Floats, gaussian, squared_distances
from tasks.drift.reference import Reference
from tasks.drift.window import Window
from tasks.metrics.statistics import Interval

NOVEL_IMAGES = 6

Verdict = Literal["drift", "suspected", "no_drift", "too_few"]
TITLES: dict[Verdict, str] = {
    "drift": "Drift",
    "suspected": "Drift suspected",
    "no_drift": "No drift",
    "too_few": "Not enough requests to tell",
}


@dataclass(frozen=True)
class FeatureTest:
    """One feature of a window against the reference.

    `adjusted` is Holm's p-value over the features, `effect` from 0 to about 1 whatever the
    detector; `reference` and `current` are means, for people.
    """

    feature: str
    detector: str
    statistic: float
    p_value: float
    adjusted: float
    effect: float
    drifted: bool
    reference: float
    current: float


@dataclass(frozen=True)
class Performance:
    """CIDEr on the window's labelled requests against the `expected` interval of as many images of
    the reference, and what the captions' log-probabilities let one expect of all requests."""

    labelled: int
    cider: float | None
    expected: Interval | None
    estimated: float | None
    estimated_reference: float | None
    drifted: bool


@dataclass(frozen=True)
class NovelImage:
    """A request unlike the reference: `novelty` is 1 minus its mean kernel with the reference."""

    request_id: str
    caption: str
    novelty: float
    image: bytes | None


@dataclass(frozen=True)
class Evidence:
    """What a detector found and what to look at; projections are [n, 2] and [m, 2]."""

    detection: Detection
    reference_projection: Floats
    current_projection: Floats
    novel: tuple[NovelImage, ...]


@dataclass(frozen=True)
class DriftReport:
    """One check of one window; `evidence` is None when there were too few requests to test.

    `means` are (reference, current) of what was measured beside the embeddings; `span` is in unix
    seconds.
    """

    reason: str
    champion_version: str
    window: str
    window_requests: int
    reference_images: int
    span: tuple[float, float] | None
    means: dict[str, tuple[float, float]]
    config: MonitorConfig
    evidence: Evidence | None
    verdict: Verdict
    tests: tuple[FeatureTest, ...] = ()
    performance: Performance | None = None

    @property
    def drifted(self) -> bool:
        return self.verdict == "drift"

    @property
    def exceeded(self) -> bool:
        """Whether this window, for itself, differs: what `recent` says of the windows before."""
        return self.verdict in ("drift", "suspected")

    @property
    def p_value(self) -> float | None:
        return self.evidence.detection.p_value if self.evidence else None

    @property
    def statistic(self) -> float | None:
        return self.evidence.detection.statistic if self.evidence else None

    def payload(self) -> dict[str, str | int | float | list[str] | None]:
        """What the event says, as JSON values."""
        return {
            "reason": self.reason,
            "detectors": [test.feature for test in self.tests if test.drifted],
            "p_value": self.p_value,
            "statistic": self.statistic,
            "window": self.window,
            "window_requests": self.window_requests,
            "champion_version": self.champion_version,
        }

    def markdown(self) -> str:
        """The report for a person: verdict, numbers, a projection, the strangest pictures."""
        blocks = [
            f"# {TITLES[self.verdict]}",
            f"**{self.reason[:1].upper()}{self.reason[1:]}.**",
            self._table(),
        ]
        if self.evidence is not None:
            plot = drawing.scatter(
                self.evidence.reference_projection, self.evidence.current_projection
            )
            blocks += [f"![Image embeddings, reference and current]({plot})"]
            blocks += ["## Least like the reference", _gallery(self.evidence.novel)]
        return "\n\n".join(blocks) + "\n"

    def _table(self) -> str:
        rows: list[tuple[str, str, str]] = [
            ("images", str(self.reference_images), str(self.window_requests)),
            *((name, f"{old:.3f}", f"{new:.3f}") for name, (old, new) in self.means.items()),
        ]
        facts = [
            ("champion", f"version {self.champion_version}"),
            ("detector", f"MMD² by {self.config.backend}, {self.config.permutations} permutations"),
        ]
        if self.evidence is not None:
            facts.append(("MMD²", f"{self.statistic:.5f}"))
            facts.append(("p-value", f"{self.p_value:.3g} (drift at ≤ {self.config.p_value:g})"))
        if self.span is not None:
            facts.append(("requests from", f"{_utc(self.span[0])} to {_utc(self.span[1])}"))
        numbers = ["| | reference | current |", "|---|---:|---:|"]
        numbers += [f"| {' | '.join(row)} |" for row in rows]
        told = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)]
        return "\n".join([*told, "", *numbers])


def check(
    reference: Reference,
    window: Window,
    config: MonitorConfig,
    seed: int,
    *,
    recent: Sequence[bool] = (),
) -> DriftReport:
    """Test one window against `config.reference_images` of the reference; touches no disk.

    `recent` says of the champion's windows before, newest first, whether each `exceeded`.
    Raises DriftError if the two can't be compared or the config could never find drift.
    """
    if 1 / (config.permutations + 1) > config.p_value:
        raise TooFewPermutations(
            f"monitor.permutations {config.permutations} can't give a p-value of "
            f"{config.p_value:g}: use at least {int(np.ceil(1 / config.p_value)) - 1}."
        )
    reference = reference.sample(config.reference_images, seed)
    evidence = None
    if len(window) >= config.min_requests:
        evidence = _evidence(reference, window, config, seed)
    verdict = _verdict(evidence, recent, config)
    return DriftReport(
        reason=_reason(verdict, evidence, len(window), config),
        champion_version=window.champion_version,
        window=window.digest,
        window_requests=len(window),
        reference_images=len(reference.image_ids),
        span=window.span,
        means=_means(reference, window),
        config=config,
        evidence=evidence,
        verdict=verdict,
        tests=_tests(evidence, config),
    )


def _verdict(evidence: Evidence | None, recent: Sequence[bool], config: MonitorConfig) -> Verdict:
    if evidence is None:
        return "too_few"
    if evidence.detection.p_value > config.p_value:
        return "no_drift"
    exceeded = 1 + sum(recent[: config.confirm_of - 1])
    return "drift" if exceeded >= config.confirm_windows else "suspected"


def _tests(evidence: Evidence | None, config: MonitorConfig) -> tuple[FeatureTest, ...]:
    if evidence is None:
        return ()
    found = evidence.detection
    test = FeatureTest(
        feature="embedding",
        detector="mmd",
        statistic=found.statistic,
        p_value=found.p_value,
        adjusted=found.p_value,
        effect=max(0.0, found.statistic) ** 0.5,
        drifted=found.p_value <= config.p_value,
        reference=0.0,
        current=0.0,
    )
    return (test,)


def _evidence(reference: Reference, window: Window, config: MonitorConfig, seed: int) -> Evidence:
    current = window.embeddings
    detection = detector(config.backend).detect(
        reference.embeddings, current, permutations=config.permutations, seed=seed
    )
    kernel = gaussian(squared_distances(current, reference.embeddings), detection.bandwidth)
    novelty = 1 - kernel.mean(axis=1)
    novel = tuple(
        NovelImage(request.request_id, request.caption, float(novelty[row]), request.image)
        for row in np.argsort(-novelty, kind="stable")[:NOVEL_IMAGES]
        for request in (window.requests[row],)
    )
    return Evidence(detection, *_projections(reference.embeddings, current), novel)


def _projections(
    reference: NDArray[np.floating], current: NDArray[np.floating]
) -> tuple[Floats, Floats]:
    """First two principal components of both together, where a drift shows if it is large."""
    pooled = np.concatenate([reference, current]).astype(np.float64)
    pooled -= pooled.mean(axis=0)
    _, _, components = np.linalg.svd(pooled, full_matrices=False)
    points = pooled @ components[:2].T
    return points[: len(reference)], points[len(reference) :]


def _reason(
    verdict: Verdict, evidence: Evidence | None, requests: int, config: MonitorConfig
) -> str:
    if evidence is None:
        return f"not enough requests ({requests} of {config.min_requests})"
    words = {"drift": "drift", "suspected": "drift suspected"}.get(verdict, "no drift")
    return f"{words}: p = {evidence.detection.p_value:.3g} over the last {requests} requests"


def _means(reference: Reference, window: Window) -> dict[str, tuple[float, float]]:
    if not window.requests:
        return {}
    brightness = np.mean([request.brightness for request in window.requests])
    confidence = np.mean([request.log_probability for request in window.requests])
    return {
        "brightness (0 to 1)": (float(reference.brightness.mean()), float(brightness)),
        "log-probability of a caption": (
            float(reference.log_probabilities.mean()),
            float(confidence),
        ),
    }


def _gallery(images: tuple[NovelImage, ...]) -> str:
    """One row an image; a picture that wasn't kept has its id."""
    lines = ["| | novelty | caption |", "| - | - | - |"]
    for image in images:
        name = image.request_id[:8]
        picture = f"![{name}]({drawing.thumbnail(image.image)})" if image.image else f"`{name}`"
        lines.append(f"| {picture} | {image.novelty:.3f} | {_plain(image.caption)} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#!&~$])", r"\\\1", " ".join(text.split()))


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
