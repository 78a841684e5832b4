import base64
import io
import json
import re

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bentos.captioner.capture import CapturedRequest
from configs.schema import MonitorConfig
from tasks.drift.detectors import TooFewPermutations
from tasks.drift.reference import Reference
from tasks.drift.report import NOVEL_IMAGES, check
from tasks.drift.window import Window

CONFIG = MonitorConfig(backend="native", min_requests=30, permutations=200)


def normal(rows: int, *, mean: float = 0.0, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(mean, 1, (rows, 8)).astype(np.float32)


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 150), (shade, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def reference() -> Reference:
    return Reference(
        [str(row) for row in range(80)], normal(80), np.full(80, 0.75), np.full(80, -2.0)
    )


def window(
    embeddings: NDArray[np.float32], *, kept: bool = True, caption: str = "a | *star*"
) -> Window:
    return Window(
        "4",
        tuple(
            CapturedRequest(
                request_id=f"{row:032x}",
                time=1_700_000_000.0 - row,
                model_version="4",
                caption=caption,
                log_probability=-3.0,
                embedding=embedding,
                width=300,
                height=150,
                brightness=0.25,
                image=png(row) if kept else None,
            )
            for row, embedding in enumerate(embeddings)
        ),
    )


@pytest.mark.parametrize("backend", ["native", "alibi-detect"])
@pytest.mark.parametrize(("mean", "drifted"), [(0.0, False), (1.0, True)])
def test_a_moved_world_is_drift_and_the_same_world_is_not(
    backend: str, mean: float, drifted: bool
) -> None:
    config = CONFIG.model_copy(update={"backend": backend})
    report = check(reference(), window(normal(50, mean=mean, seed=1)), config, seed=0)
    assert report.drifted is drifted
    assert report.reason.startswith("drift: p = " if drifted else "no drift: p = ")
    assert (report.window_requests, report.reference_images) == (50, 80)
    assert report.p_value is not None
    assert (report.p_value <= config.p_value) is drifted


def test_no_more_reference_images_are_used_than_the_config_asks_for() -> None:
    config = CONFIG.model_copy(update={"reference_images": 60})
    report = check(reference(), window(normal(40, seed=1)), config, seed=0)
    assert report.evidence is not None
    assert len(report.evidence.reference_projection) == report.reference_images == 60


def test_too_few_requests_are_no_verdict_and_say_how_many_are_missing() -> None:
    for rows in (0, 29):
        report = check(reference(), window(normal(29, mean=9)[:rows]), CONFIG, seed=0)
        assert not report.drifted
        assert report.reason == f"not enough requests ({rows} of 30)"
        assert report.p_value is None
        assert report.markdown().startswith("# Not enough requests to tell\n")
        json.dumps(report.payload(), allow_nan=False)


def test_a_check_is_repeatable() -> None:
    current = window(normal(40, mean=0.2, seed=1))
    reports = [check(reference(), current, CONFIG, seed=5) for _ in range(2)]
    assert reports[0].payload() == reports[1].payload()
    assert reports[0].markdown() == reports[1].markdown()


def test_the_least_familiar_images_come_first() -> None:
    embeddings = normal(40, seed=1)
    embeddings[[7, 3]] += np.array([[60.0], [90.0]], np.float32)
    evidence = check(reference(), window(embeddings), CONFIG, seed=0).evidence
    assert evidence is not None
    novelties = [image.novelty for image in evidence.novel]
    assert len(novelties) == NOVEL_IMAGES
    assert novelties == sorted(novelties, reverse=True)
    assert {int(image.request_id, 16) for image in evidence.novel[:2]} == {7, 3}
    assert novelties[0] == pytest.approx(1.0)


def test_the_markdown_shows_verdict_numbers_and_pictures() -> None:
    text = check(reference(), window(normal(40, mean=1, seed=1)), CONFIG, seed=0).markdown()
    assert text.startswith("# Drift\n\n**Drift: p = 0.00498 over the last 40 requests.**")
    assert "| brightness (0 to 1) | 0.750 | 0.250 |" in text
    assert "| champion | version 4 |" in text
    assert "2023-11-14 22:12:41 UTC to 2023-11-14 22:13:20 UTC" in text
    assert r"a \| \*star\*" in text
    pictures = re.findall(r"!\[[^\]]*\]\(data:image/png;base64,([^)]+)\)", text)
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures]
    assert sizes[1:] == [(112, 56)] * NOVEL_IMAGES
    assert len(text) < 400_000


def test_pictures_that_were_not_kept_are_named_by_their_request() -> None:
    current = window(normal(40, mean=1, seed=1), kept=False)
    text = check(reference(), current, CONFIG, seed=0).markdown()
    assert len(re.findall(r"`0000\w{4}`", text)) == NOVEL_IMAGES
    assert text.count("data:image/png") == 1


def test_the_payload_is_what_the_automation_reads() -> None:
    current = window(normal(40, mean=1, seed=1))
    payload = check(reference(), current, CONFIG, seed=0).payload()
    assert payload["reason"] == "drift: p = 0.00498 over the last 40 requests"
    assert payload["champion_version"] == "4"
    assert payload["window"] == current.digest
    assert payload["p_value"] == 1 / 201
    json.dumps(payload, allow_nan=False)


def test_permutations_that_could_never_find_drift_are_refused() -> None:
    current = window(normal(40, mean=1, seed=1))
    few = CONFIG.model_copy(update={"permutations": 98})
    with pytest.raises(TooFewPermutations, match=r"permutations 98 .* at least 99"):
        check(reference(), current, few, seed=0)
    enough = CONFIG.model_copy(update={"permutations": 99})
    assert check(reference(), current, enough, seed=0).drifted


@pytest.mark.parametrize(
    ("recent", "verdict"),
    [
        ((), "suspected"),
        ((False, True), "drift"),
        ((True,), "drift"),
        ((False, False, True), "suspected"),
    ],
)
def test_drift_is_confirmed_by_k_of_the_last_n_windows(recent: tuple, verdict: str) -> None:
    config = CONFIG.model_copy(update={"confirm_windows": 2, "confirm_of": 3})
    moved, same = window(normal(40, mean=1, seed=1)), window(normal(40, seed=1))
    report = check(reference(), moved, config, seed=0, recent=recent)
    assert (report.verdict, report.exceeded) == (verdict, True)
    assert check(reference(), same, config, seed=0, recent=(True, True)).verdict == "no_drift"
