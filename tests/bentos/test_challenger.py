"""A second model beside the champion: the canary's share, its failures, and the shadow."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from bentos.captioner.capture import read_window
from bentos.captioner.challenge import MOST_WAITING, is_canarys
from bentos.captioner.engine import TooManyTokens
from bentos.captioner.images import decode, to_pixels
from bentos.captioner.models import ServedModel, load_model
from bentos.captioner.runtime import MOST_CANARY_FAILURES
from bentos.captioner.settings import BadSetting, ServiceSettings
from tests.bentos.serving import HeldEngine, Served, assert_problem, held, served

URI = "models:/tiny@challenger"
HALF = {"canary": URI, "canary_share": 0.5}


@pytest.fixture(scope="module")
def other(make_tiny_blip, tmp_path_factory) -> ServedModel:
    """Another model, of another image size."""
    folder = tmp_path_factory.mktemp("other") / "model"
    make_tiny_blip(folder, seed=5, version="8", image_size=48)
    return load_model(folder, source="test")


def says(model: ServedModel, data: bytes) -> str:
    pixels = to_pixels(decode(data), model.engine.image_size)[np.newaxis]
    return model.engine.caption(pixels, model.generation)[0].text


def failing(model: ServedModel, error: Exception) -> tuple[ServedModel, list[int]]:
    """The model with an engine that raises as long as told so, and the batches it was given."""
    batches: list[int] = []

    class Failing(HeldEngine):
        def run(self, pixels, generation):
            batches.append(len(pixels))
            if not self.go.is_set():
                raise error
            return self._engine.run(pixels, generation)

    return replace(model, engine=Failing(model)), batches


def key_of_the_canary() -> str:
    return next(key for key in "abcdefgh" if is_canarys(key.encode(), "8", 0.5))


# --- whose a request is ---------------------------------------------------------------------


@given(st.binary(), st.integers(1, 10_000).map(str), st.floats(0, 1), st.floats(0, 1))
def test_a_key_stays_on_its_side_and_a_growing_share_only_adds_keys(key, version, low, high):
    low, high = sorted((low, high))
    assert is_canarys(key, version, low) == is_canarys(key, version, low)
    assert is_canarys(key, version, low) <= is_canarys(key, version, high)
    assert not is_canarys(key, version, 0)
    assert is_canarys(key, version, 1)


@given(st.binary(), st.integers(1, 10_000).map(str), st.floats(0.001, 0.999))
def test_a_share_of_the_keys_is_the_canarys_within_what_chance_allows(prefix, version, share):
    trials = 2000
    taken = sum(is_canarys(prefix + i.to_bytes(4), version, share) for i in range(trials))
    low, high = binom.interval(1 - 1e-9, trials, share)
    assert low <= taken <= high


def test_two_versions_are_tried_out_on_keys_that_have_nothing_to_do_with_each_other():
    keys = [i.to_bytes(4) for i in range(4000)]
    both = sum(is_canarys(key, "3", 0.5) and is_canarys(key, "4", 0.5) for key in keys)
    low, high = binom.interval(1 - 1e-9, len(keys), 0.25)
    assert low <= both <= high


def test_another_process_puts_every_key_on_the_same_side():
    code = """
from bentos.captioner.challenge import is_canarys
print([i for i in range(100) if is_canarys(bytes([i]), "4", 0.3)])
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    here = [i for i in range(100) if is_canarys(bytes([i]), "4", 0.3)]
    assert json.loads(said.stdout) == here
    assert here


# --- the canary -----------------------------------------------------------------------------


def test_under_load_each_picture_is_answered_and_captured_by_the_one_it_belongs_to(
    model, other, png, tmp_path
) -> None:
    pictures = [png(seed) for seed in range(40)]
    owner = [other if is_canarys(data, "8", 0.5) else model for data in pictures]
    expected = [
        (served_by.version, says(served_by, data))
        for served_by, data in zip(owner, pictures, strict=True)
    ]
    assert {version for version, _ in expected} == {"7", "8"}

    async def main() -> dict[str, str]:
        async with served(model, captures=tmp_path, **HALF) as service:
            service.runtime.challenge(other)
            answers = await asyncio.gather(*map(service.caption, pictures))
            bodies = [answer.json() for answer in answers]
            assert [(body["model"]["version"], body["caption"]) for body in bodies] == expected
            assert service.metric("canary_answers_total") == owner.count(other)
            assert service.metric("batch_size_sum") > len(pictures)  # they did share batches
            return {body["request_id"]: body["model"]["version"] for body in bodies}

    answered = asyncio.run(main())
    for version in ("7", "8"):
        captured = read_window(tmp_path, model_version=version, limit=100)
        assert {one.request_id for one in captured} == {
            request_id for request_id, by in answered.items() if by == version
        }


def test_a_canary_key_keeps_a_client_on_one_side_whatever_it_sends(model, other, png) -> None:
    async def main() -> None:
        async with served(model, **HALF) as service:
            service.runtime.challenge(other)
            for key in ("ann", "bob", "eve", "zoë"):
                headers = {"X-Canary-Key": key.encode("latin-1")}
                expected = "8" if is_canarys(key.encode("latin-1"), "8", 0.5) else "7"
                files = [("images", png(seed)) for seed in range(4)]
                many = await service.client.post("/captions", files=files, headers=headers)
                one = await service.caption(png(9), headers=headers)
                answers = [*many.json()["results"], one.json()]
                assert [each["model"]["version"] for each in answers] == [expected] * 5

    asyncio.run(main())


def test_a_failing_canarys_requests_are_the_champions_until_it_is_taken_out(
    model, other, png, caplog
) -> None:
    broken, batches = failing(other, RuntimeError("no kernel"))
    headers = {"X-Canary-Key": key_of_the_canary()}

    async def main() -> None:
        async with served(model, **HALF) as service:
            service.runtime.challenge(broken)
            for seed in range(MOST_CANARY_FAILURES - 1):
                await champion_answers(service, png(seed), headers)
            assert service.runtime.challenger is broken
            assert info(service) == 1
            broken.engine.go.set()  # once is enough to begin anew
            recovered = (await service.caption(png(0), headers=headers)).json()
            assert recovered["model"]["version"] == "8"
            broken.engine.go.clear()
            for seed in range(MOST_CANARY_FAILURES):
                assert service.runtime.challenger is broken
                await champion_answers(service, png(seed), headers)
            assert service.runtime.challenger is None
            assert info(service) == 0
            tried = len(batches)
            await champion_answers(service, png(0), headers)
            assert len(batches) == tried == 2 * MOST_CANARY_FAILURES
            assert service.metric("canary_failures_total") == tried - 1
            assert service.metric("canary_answers_total") == 1

    async def champion_answers(service: Served, data: bytes, headers: dict[str, str]) -> None:
        answer = await service.caption(data, headers=headers)
        assert answer.status_code == 200
        assert answer.json()["model"]["version"] == "7"
        assert answer.json()["caption"] == says(model, data)

    def info(service: Served) -> float:
        return service.metric("challenger_info", name="tiny", version="8", role="canary")

    with caplog.at_level(logging.ERROR, logger="bentos.captioner.runtime"):
        asyncio.run(main())
    (report,) = caplog.records
    assert "version 8 is taken out" in report.getMessage()
    assert "no kernel" in report.getMessage()


def test_a_batch_that_fails_is_one_failure_of_the_canary(model, other, png) -> None:
    broken, batches = failing(other, RuntimeError("no kernel"))
    slow, engine = held(model)

    async def main() -> None:
        async with served(slow, **HALF) as service:
            first = asyncio.ensure_future(service.caption(png(0)))
            await asyncio.to_thread(engine.entered.wait)
            service.runtime.challenge(broken)
            headers = {"X-Canary-Key": key_of_the_canary()}
            others = [
                asyncio.ensure_future(service.caption(png(seed), headers=headers))
                for seed in range(MOST_CANARY_FAILURES + 1)
            ]
            while len(service.runtime._batcher._waiting) < len(others):
                await asyncio.sleep(0.01)
            engine.go.set()
            answers = await asyncio.gather(first, *others)
            assert {answer.json()["model"]["version"] for answer in answers} == {"7"}
            assert batches == [len(others)]
            assert service.metric("canary_failures_total") == len(others)
            assert service.runtime.challenger is broken

    asyncio.run(main())


def test_a_batch_is_no_larger_than_suits_the_slower_of_champion_and_canary(model, other) -> None:
    slower = replace(other, max_batch=1)

    async def main() -> None:
        async with served(model, **HALF) as service:
            batcher = service.runtime._batcher
            service.runtime.challenge(slower)
            assert batcher.max_batch == 1
            await service.runtime.dismiss()
            assert batcher.max_batch == model.max_batch > 1
        async with served(model, shadow=URI) as service:
            service.runtime.challenge(slower)  # whose batches are of one anyway
            assert service.runtime._batcher.max_batch == model.max_batch

    asyncio.run(main())


def test_options_that_only_the_canary_refuses_are_no_failure_of_it(model, other, png) -> None:
    narrow, _ = failing(other, TooManyTokens("for 8 tokens there is no room"))

    async def main() -> None:
        async with served(model, canary=URI, canary_share=0.999999) as service:
            service.runtime.challenge(narrow)
            for _ in range(MOST_CANARY_FAILURES + 1):
                answer = await service.caption(png(1), params={"max_new_tokens": 8})
                assert answer.json()["model"]["version"] == "7"
            assert service.runtime.challenger is narrow
            assert service.metric("canary_failures_total") == 0
            # What neither of them can do is the client's problem, as it is without a canary.
            refused = await service.caption(png(1), params={"max_new_tokens": 64, "prompt": "a"})
            assert_problem(refused, 422)

    asyncio.run(main())


def test_a_client_that_hangs_up_while_the_canary_works_costs_the_champion_nothing(
    model, other, png
) -> None:
    slow, engine = held(other)
    champion, batches = failing(model, RuntimeError("not to be asked"))

    async def main() -> None:
        async with served(champion, canary=URI, canary_share=0.999999) as service:
            service.runtime.challenge(slow)
            asked = asyncio.ensure_future(service.caption(png(0)))
            await asyncio.to_thread(engine.entered.wait)
            asked.cancel()
            engine.go.set()
            with pytest.raises(asyncio.CancelledError):
                await asked
        assert batches == []

    asyncio.run(main())


# --- the shadow -----------------------------------------------------------------------------


async def until_compared(service: Served, count: int) -> None:
    outcomes = ("same", "different", "failed")
    async with asyncio.timeout(60):
        while sum(service.metric("shadow_total", outcome=each) for each in outcomes) < count:
            await asyncio.sleep(0.02)


def test_the_shadow_captions_what_was_answered_and_logs_where_it_differs(
    model, other, png, caplog
) -> None:
    pictures = [png(seed) for seed in range(8)]

    async def main() -> list[dict]:
        async with served(model, shadow=URI) as service:
            service.runtime.challenge(other)
            answers = [(await service.caption(data)).json() for data in pictures]
            assert {answer["model"]["version"] for answer in answers} == {"7"}
            await until_compared(service, len(pictures))
            differ = sum(says(other, data) != says(model, data) for data in pictures)
            assert differ > 0
            assert service.metric("shadow_total", outcome="different") == differ
            assert service.metric("shadow_log_probability_gain_count") == len(pictures)
            return answers

    with caplog.at_level(logging.INFO, logger="captioner.shadow"):
        answers = {answer["request_id"]: answer for answer in asyncio.run(main())}
    logged = [json.loads(record.getMessage()) for record in caplog.records]
    by_id = {line["request_id"]: line for line in logged}
    for data, (request_id, answer) in zip(pictures, answers.items(), strict=True):
        if says(other, data) == says(model, data):
            assert request_id not in by_id
            continue
        line = by_id.pop(request_id)
        assert line.keys() == {"request_id", "champion", "challenger"}
        assert line["champion"] == {
            "version": "7",
            "caption": answer["caption"],
            "log_probability": pytest.approx(answer["log_probability"], abs=1e-5),
        }
        pixels = to_pixels(decode(data), 48)[np.newaxis]
        caption = other.engine.caption(pixels, other.generation)[0]
        assert line["challenger"]["version"] == "8"
        assert line["challenger"]["caption"] == caption.text
        assert line["challenger"]["log_probability"] == pytest.approx(
            caption.log_probability, abs=1e-4
        )
    assert by_id == {}


def test_the_same_model_as_a_shadow_never_differs(model, tiny_blip, png, caplog) -> None:
    twin = load_model(tiny_blip, source="test", version="9")

    async def main() -> None:
        async with served(model, shadow=URI) as service:
            service.runtime.challenge(twin)
            for seed in range(4):
                await service.caption(png(seed), params={"num_beams": 3})
            await until_compared(service, 4)
            assert service.metric("shadow_total", outcome="same") == 4
            assert service.metric("shadow_log_probability_gain_sum") == pytest.approx(0, abs=1e-4)

    with caplog.at_level(logging.INFO, logger="captioner.shadow"):
        asyncio.run(main())
    assert caplog.records == []


def test_while_requests_are_in_work_the_shadow_waits_and_skips_what_is_too_much(
    model, other, png
) -> None:
    quiet, shadow = held(other)
    slow, champion = held(model)

    async def main() -> None:
        async with served(slow, shadow=URI) as service:
            service.runtime.challenge(quiet)
            champion.go.set()
            for seed in range(MOST_WAITING + 3):
                await service.caption(png(seed))
            champion.go.clear()
            champion.entered.clear()
            asked = asyncio.ensure_future(service.caption(png(0)))
            await asyncio.to_thread(champion.entered.wait)
            await asyncio.sleep(0.5)
            assert not shadow.entered.is_set()
            assert service.metric("shadow_total", outcome="skipped") == 3
            champion.go.set()
            await asked
            await asyncio.to_thread(shadow.entered.wait)
            # A request is answered while the shadow is held in its thread.
            assert (await service.caption(png(1))).status_code == 200
            shadow.go.set()

    asyncio.run(main())


def test_a_shadow_that_fails_is_counted_and_harms_no_request(model, other, png) -> None:
    broken, _ = failing(other, RuntimeError("no kernel"))

    async def main() -> None:
        async with served(model, shadow=URI) as service:
            service.runtime.challenge(broken)
            for seed in range(3):
                assert (await service.caption(png(seed))).status_code == 200
            await until_compared(service, 3)
            assert service.metric("shadow_total", outcome="failed") == 3

    asyncio.run(main())


def test_a_dismissed_shadow_is_at_rest_so_that_it_may_become_the_champion(
    model, other, png
) -> None:
    quiet, shadow = held(other)

    async def main() -> None:
        async with served(model, shadow=URI) as service:
            service.runtime.challenge(quiet)
            await asyncio.gather(*(service.caption(png(seed)) for seed in range(4)))
            await asyncio.to_thread(shadow.entered.wait)
            leaving = asyncio.ensure_future(service.runtime.dismiss())
            done, _ = await asyncio.wait([leaving], timeout=0.3)
            assert not done
            shadow.go.set()
            assert await leaving is quiet
            assert shadow.seen == 1  # what waited is forgotten
            assert service.metric("shadow_total", outcome="skipped") == 3
            service.runtime.swap(quiet)
            answer = (await service.caption(png(0))).json()
            assert (answer["model"]["version"], answer["caption"]) == ("8", says(other, png(0)))

    asyncio.run(main())


def test_what_waits_for_the_shadow_keeps_no_replaced_champion_in_memory(
    model, other, tiny_blip, png
) -> None:
    async def main() -> None:
        async with served(model, shadow=URI) as service:
            service.runtime.challenge(other)
            service.runtime.swap(load_model(tiny_blip, source="test"))
            gone = weakref.ref(service.runtime.model.engine)
            with service.runtime._batcher.place():  # so that the shadow has no time
                assert (await service.caption(png(0))).status_code == 200
                service.runtime.swap(model)
                assert (await service.caption(png(0))).status_code == 200
                assert gone() is None

    asyncio.run(main())


# --- how it is told -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (HALF, {"name": "tiny", "version": "8", "role": "canary", "share": 0.5}),
        ({"shadow": URI}, {"name": "tiny", "version": "8", "role": "shadow", "share": None}),
    ],
)
def test_the_model_route_tells_of_the_challenger_while_there_is_one(
    model, other, options, told
) -> None:
    async def main() -> None:
        async with served(model, **options) as service:
            assert (await service.client.get("/model")).json()["challenger"] is None
            service.runtime.challenge(other)
            answer = (await service.client.get("/model")).json()
            assert (answer["version"], answer["challenger"]) == ("7", told)
            await service.runtime.dismiss()
            assert (await service.client.get("/model")).json()["challenger"] is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"SHADOW": URI, "FOLLOW": ""}, "CAPTIONLOOP_SHADOW needs CAPTIONLOOP_FOLLOW"),
        ({"CANARY": URI, "FOLLOW": ""}, "CAPTIONLOOP_CANARY needs CAPTIONLOOP_FOLLOW"),
        ({"SHADOW": URI, "CANARY": URI}, "keep one of them"),
        ({"CANARY": "models:/tiny@champion"}, "CANARY must be another alias of tiny"),
        ({"SHADOW": "models:/other@challenger"}, "SHADOW must be another alias of tiny"),
        ({"SHADOW": "models:/tiny/3"}, "SHADOW must be models:/<name>@<alias>"),
        ({"FOLLOW": "models:/tiny/3"}, "FOLLOW must be models:/<name>@<alias>"),
        ({"FOLLOW": "tiny@champion"}, "FOLLOW must be models:/<name>@<alias>"),
        ({"FOLLOW": "models:/@champion"}, "FOLLOW must be models:/<name>@<alias>"),
        ({"FOLLOW": "runs:/a"}, "FOLLOW must be models:/<name>@<alias>"),
        ({"CANARY_SHARE": "0.5"}, "CANARY_SHARE needs CAPTIONLOOP_CANARY"),
        ({"CANARY": URI, "CANARY_SHARE": "1"}, "CANARY_SHARE must be below 1"),
        ({"CANARY": URI, "CANARY_SHARE": "0"}, "CANARY_SHARE must be positive"),
        ({"CANARY": URI, "CANARY_SHARE": "10%"}, "CANARY_SHARE must be a number"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(given, message) -> None:
    environment = {"MLFLOW_TRACKING_URI": "x", "CAPTIONLOOP_FOLLOW": "models:/tiny@champion"}
    environment |= {f"CAPTIONLOOP_{name}": value for name, value in given.items()}
    with pytest.raises(BadSetting, match=message):
        ServiceSettings.from_environment(environment)
