"""Limits, clocks, tokens, origins and the access log, before any route."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import httpx
import pytest

from bentos.captioner.settings import BadSetting, ServiceSettings
from bentos.captioner.tokens import Tokens
from tests.bentos.serving import HeldEngine, ServedModel, assert_problem, held, served

TOKENS = [
    {"name": "app", "token": "a-token", "scopes": ["caption"]},
    {"name": "desk", "token": "d-token", "scopes": ["caption", "feedback"]},
    {"name": "admin", "token": "x-token"},
]


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_body_that_dribbles_is_ended_with_408_however_it_dribbles(model) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'

    async def dribble() -> AsyncIterator[bytes]:
        yield part
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0.02)

    async def main() -> None:
        async with served(model, body_seconds=0.2) as service:
            for headers in (
                {"content-type": "multipart/form-data; boundary=b"},
                {"content-type": "application/json"},
                {"content-type": "image/png"},
            ):
                response = await service.client.post("/caption", content=dribble(), headers=headers)
                assert_problem(response, 408)
                assert response.headers["connection"] == "close"
            assert service.metric("requests_total", route="/v1/caption", status="408") == 3
            assert service.metric("requests_in_progress") == 0

    asyncio.run(main())


def test_a_late_answer_is_504_and_its_work_is_dropped(model, png) -> None:
    async def main() -> None:
        slow, engine = held(model)
        async with served(slow, answer_seconds=0.3) as service:
            first = asyncio.ensure_future(service.caption(png(0)))
            await asyncio.to_thread(engine.entered.wait)
            second = asyncio.ensure_future(service.caption(png(1)))
            for response in await asyncio.gather(first, second):
                assert_problem(response, 504)
            engine.go.set()
            assert (await service.caption(png(2))).status_code == 200
            assert engine.seen == 2  # what had started, and the last: the second never ran

    asyncio.run(main())


def test_a_slow_body_leaves_its_answer_all_the_time(model, png) -> None:
    async def late() -> AsyncIterator[bytes]:
        yield png(0)[:50]
        await asyncio.sleep(0.3)
        yield png(0)[50:]

    async def main() -> None:
        async with served(model, body_seconds=20, answer_seconds=0.25) as service:
            await service.caption(png(0))
            response = await service.client.post(
                "/caption", content=late(), headers={"content-type": "image/png"}
            )
            assert response.status_code == 200

    asyncio.run(main())


def test_requests_beyond_the_most_in_progress_are_told_to_come_again(model, png) -> None:
    async def main() -> None:
        slow, engine = held(model)
        async with served(slow, max_requests=2) as service:
            tasks = [asyncio.ensure_future(service.caption(png(seed))) for seed in range(2)]
            await asyncio.to_thread(engine.entered.wait)
            refused = await service.caption(png(2))
            assert_problem(refused, 429)
            assert int(refused.headers["retry-after"]) >= 1
            engine.go.set()
            assert [one.status_code for one in await asyncio.gather(*tasks)] == [200, 200]

    asyncio.run(main())


def test_scopes_open_their_own_requests_and_no_other(model, png, tmp_path) -> None:
    async def main() -> None:
        options = {"tokens_json": json.dumps(TOKENS), "captures": tmp_path}
        async with served(model, **options) as service:
            client = service.client
            for token, allowed in (
                ("a-token", {"caption"}),
                ("d-token", {"caption", "feedback"}),
                ("x-token", {"caption", "feedback", "captures"}),
            ):
                headers = bearer(token)
                made = await service.caption(png(0), headers=bearer("x-token"))
                request_id = made.json()["request_id"]
                sent = {"request_id": request_id, "caption": "a star"}
                asked = {
                    "caption": await service.caption(png(0), headers=headers),
                    "feedback": await client.post("/feedback", json=sent, headers=headers),
                    "captures": await client.delete(f"/captures/{request_id}", headers=headers),
                }
                for scope, response in asked.items():
                    if scope in allowed:
                        assert response.is_success
                    else:
                        assert_problem(response, 403)
                        assert f'scope="{scope}"' in response.headers["www-authenticate"]
                many = {"images": ("picture", png(0))}
                assert (await client.post("/captions", files=many, headers=headers)).is_success
                assert (await client.get("/model", headers=headers)).is_success
            assert_problem(await client.get("/model", headers=bearer("unknown")), 401)
            assert_problem(await client.get("/nothing"), 401)

    asyncio.run(main())


def test_tokens_rotate_with_their_file_and_a_broken_file_changes_nothing(model, tmp_path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps(TOKENS[:1]))

    async def status(service, token: str) -> int:
        return (await service.client.get("/model", headers=bearer(token))).status_code

    async def main() -> None:
        async with served(model, tokens_file=file) as service:
            assert [await status(service, token) for token in ("a-token", "b-token")] == [200, 401]
            other = tmp_path / "other.json"
            other.write_text(json.dumps([{"name": "app", "token": "b-token"}]))
            os.replace(other, file)
            assert [await status(service, token) for token in ("a-token", "b-token")] == [401, 200]
            for broken in ("", "[]", "{", '[{"name": "app"}]', '[{"name": 1, "token": "t"}]'):
                file.write_text(broken)
                assert await status(service, "b-token") == 200
            file.unlink()
            assert await status(service, "b-token") == 200
            assert service.metric("token_reload_errors_total") == 6

    asyncio.run(main())


def test_wrong_tokens_are_told_at_the_start_without_repeating_them(tmp_path) -> None:
    twice = json.dumps([{"name": "a", "token": "s3cret"}, {"name": "a", "token": "s3cret2"}])
    for settings, words in (
        (ServiceSettings(token="s3cret", tokens_json="[]"), "keep one of them"),
        (ServiceSettings(tokens_json=twice), "a name of its own"),
        (ServiceSettings(tokens_json='[{"name":"a","token":"s3cret","scopes":["all"]}]'), "0.scop"),
        (ServiceSettings(tokens_json='{"s3cret'), "CAPTIONLOOP_TOKENS"),
        (ServiceSettings(tokens_file=tmp_path / "none"), "can't be read"),
    ):
        with pytest.raises(BadSetting, match=words) as caught:
            Tokens.from_settings(settings)
        assert "s3cret" not in str(caught.value)


def test_a_service_with_wrong_tokens_does_not_start(model) -> None:
    async def main() -> None:
        with pytest.raises(BadSetting, match="CAPTIONLOOP_TOKENS"):
            async with served(model, tokens_json="[]"):
                pass

    asyncio.run(main())


def test_strangers_who_are_slow_take_no_place_from_those_with_a_token(model, png) -> None:
    async def dribble() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x"
            await asyncio.sleep(0.05)

    async def main() -> None:
        async with served(model, token="sesame", max_requests=1) as service:
            slow = asyncio.ensure_future(service.client.post("/caption", content=dribble()))
            await asyncio.sleep(0.1)
            assert service.metric("requests_in_progress") == 1
            response = await service.caption(png(0), headers=bearer("sesame"))
            assert response.status_code == 200
            assert_problem(await slow, 401)

    asyncio.run(main())


def test_no_answer_sends_a_client_and_its_token_to_another_address(model, png) -> None:
    async def main() -> None:
        async with served(model, token="sesame") as service:
            headers = {**bearer("sesame"), "host": "elsewhere.example"}
            assert_problem(await service.client.get("/model/", headers=headers), 404)
            assert_problem(
                await service.client.post("/caption/", content=png(0), headers=headers), 404
            )

    asyncio.run(main())


def test_listed_origins_may_ask_and_others_may_not(model, png) -> None:
    async def main() -> None:
        origin = "https://app.example"
        async with served(model, cors_origins=(origin,), token="sesame") as service:
            asks = {"access-control-request-method": "DELETE"}
            asks["access-control-request-headers"] = "authorization,content-type"
            for one, allowed in ((origin, origin), ("https://evil.example", None)):
                headers = {"origin": one, **asks}
                preflight = await service.client.options("/captures/1", headers=headers)
                assert preflight.headers.get("access-control-allow-origin") == allowed
                refused = await service.caption(png(0), headers={"origin": one})
                assert_problem(refused, 401)
                assert refused.headers.get("access-control-allow-origin") == allowed
        async with served(model) as service:
            response = await service.caption(png(0), headers={"origin": origin})
            assert "access-control-allow-origin" not in response.headers

    asyncio.run(main())


def test_the_access_log_has_a_json_object_a_request_and_no_token(model, png, caplog) -> None:
    async def main() -> list[httpx.Response]:
        async with served(model, tokens_json=json.dumps(TOKENS)) as service:
            headers = bearer("d-token")
            return [
                await service.caption(png(0), headers=headers),
                await service.client.get("/model?secret=1", headers=bearer("wrong")),
                await service.client.delete("/captures/some-id", headers=headers),
                await service.client.get("/wp-admin/x.php", headers=headers),
            ]

    with caplog.at_level(logging.INFO, logger="captioner.access"):
        responses = asyncio.run(main())
    lines = [record.message for record in caplog.records if record.name == "captioner.access"]
    entries = [json.loads(line) for line in lines]
    assert [
        (entry["method"], entry["route"], entry["status"], entry["token"]) for entry in entries
    ] == [
        ("POST", "/v1/caption", 200, "desk"),
        ("GET", "other", 401, None),
        ("DELETE", "/v1/captures/{request_id}", 403, "desk"),
        ("GET", "other", 404, "desk"),
    ]
    for entry, response in zip(entries, responses, strict=True):
        assert entry["request_id"] == response.headers["x-request-id"]
        assert entry["seconds"] > 0
        assert response.headers["x-content-type-options"] == "nosniff"
    for secret in ("d-token", "wrong", "secret", "some-id", "wp-admin"):
        assert secret not in "".join(lines)


def test_a_server_error_tells_no_reason_and_is_named_counted_and_logged_as_any_answer(
    model, png, caplog
) -> None:
    class Broken(HeldEngine):
        def run(self, *_: object) -> object:
            raise RuntimeError("secret detail")

    async def main() -> httpx.Response:
        async with served(ServedModel(**{**vars(model), "engine": Broken(model)})) as service:
            app = service.client._transport.app  # type: ignore[attr-defined]
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://t/v1") as client:
                response = await client.post("/caption", files={"image": png(0)})
            assert service.metric("requests_total", route="/v1/caption", status="500") == 1
            assert service.metric("requests_in_progress") == 0
            return response

    with caplog.at_level(logging.INFO, logger="captioner.access"):
        response = asyncio.run(main())
    assert_problem(response, 500)
    assert "secret" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"
    (entry,) = [json.loads(r.message) for r in caplog.records if r.name == "captioner.access"]
    assert (entry["status"], entry["request_id"]) == (500, response.headers["x-request-id"])


def test_the_metrics_are_open_unless_a_token_is_asked_for_there_too(model) -> None:
    tokens = [{"name": "prometheus", "token": "p", "scopes": ["metrics"]}, TOKENS[0]]

    async def main() -> None:
        url = "http://test/metrics"
        async with served(model, tokens_json=json.dumps(tokens)) as service:
            assert (await service.client.get(url)).status_code == 200
        async with served(model, tokens_json=json.dumps(tokens), open_metrics=False) as service:
            assert_problem(await service.client.get(url), 401)
            assert_problem(await service.client.get(url, headers=bearer("a-token")), 403)
            answer = await service.client.get(url, headers=bearer("p"))
            assert "captioner_requests_total" in answer.text
            assert_problem(await service.caption(b"", headers=bearer("p")), 403)
            assert (await service.client.get("http://test/")).status_code == 200
        with pytest.raises(BadSetting, match="CAPTIONLOOP_OPEN_METRICS=0 needs tokens"):
            Tokens.from_settings(ServiceSettings(open_metrics=False))

    asyncio.run(main())


def test_gauges_of_killed_workers_are_forgotten_and_those_of_others_kept(tmp_path) -> None:
    code = """
import os
from bentos.captioner.telemetry import Telemetry, forget_dead_workers
if (worker := os.fork()) == 0:
    Telemetry().in_progress.inc(5)
    os.kill(os.getpid(), 9)
os.waitpid(worker, 0)
here = Telemetry()
here.in_progress.inc()
before = here.exposition()
forget_dead_workers()
for text in (before, here.exposition()):
    lines = text.decode().splitlines()
    print(*[line for line in lines if line.startswith("captioner_requests_in")])
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "captioner_requests_in_progress 6.0",
        "captioner_requests_in_progress 1.0",
    ], done.stderr


def test_settings_of_limits_and_origins_say_what_is_wrong() -> None:
    read = ServiceSettings.from_environment
    assert read({"CAPTIONLOOP_CORS_ORIGINS": "https://a.example, http://b:8080"}).cors_origins == (
        "https://a.example",
        "http://b:8080",
    )
    for wrong in ("a.example", "*", "https://a.example/path", "ftp://a"):
        with pytest.raises(BadSetting, match="CORS_ORIGINS"):
            read({"CAPTIONLOOP_CORS_ORIGINS": wrong})
    for name in ("MAX_BODY_BYTES", "MAX_PIXELS", "MAX_IMAGES", "MAX_NEW_TOKENS", "MAX_BEAMS"):
        with pytest.raises(BadSetting, match=name):
            read({f"CAPTIONLOOP_{name}": "1.5"})
    assert read({"CAPTIONLOOP_MAX_QUEUE": "3", "CAPTIONLOOP_BODY_SECONDS": "0.5"}) == (
        ServiceSettings(max_queue=3, body_seconds=0.5)
    )
