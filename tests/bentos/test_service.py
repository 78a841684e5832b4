import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bentos.captioner.capture import read_feedback, read_window
from bentos.captioner.engine import BadModelFolder
from bentos.captioner.generation import Generation
from bentos.captioner.guard import Entrance
from bentos.captioner.images import decode, to_pixels
from bentos.captioner.models import load_model
from bentos.captioner.settings import BadSetting, ServiceSettings
from tests.bentos.serving import Served, assert_problem, held, served


def test_a_picture_gets_the_engines_caption_and_the_version_that_made_it(model, png) -> None:
    async def main() -> None:
        async with served(model) as service:
            response = await service.caption(png(3))
            assert response.status_code == 200
            body = response.json()
            pixels = to_pixels(decode(png(3)), 72)[np.newaxis]
            expected = model.engine.caption(pixels, Generation(8))[0]
            assert body["caption"] == expected.text
            assert body["log_probability"] == pytest.approx(expected.log_probability, abs=1e-4)
            assert body["model"] == {"name": "tiny", "version": "7"}
            assert len(body["request_id"]) == 32
            assert body["timings"].keys() == {
                "decode_seconds",
                "queue_seconds",
                "inference_seconds",
                "total_seconds",
            }
            card = (await service.client.get("/model")).json()
            assert (card["name"], card["version"], card["source"]) == ("tiny", "7", "test")
            assert card["card"]["dataset_digest"] == "0" * 64

    asyncio.run(main())


def test_concurrent_pictures_get_their_own_captions(model, png) -> None:
    async def main() -> None:
        async with served(model) as service:
            alone = [(await service.caption(png(seed))).json()["caption"] for seed in range(20)]
            together = await asyncio.gather(*(service.caption(png(seed)) for seed in range(20)))
            assert [response.json()["caption"] for response in together] == alone
            assert len(set(alone)) > 3
            assert service.metric("requests_total", route="/v1/caption", status="200") == 40
            assert service.metric("batch_size_count") == 40
            assert service.metric("batch_size_sum") > 40

    asyncio.run(main())


def test_what_was_seen_is_captured_and_can_be_corrected(model, png, tmp_path) -> None:
    async def main() -> str:
        async with served(model, captures=tmp_path) as service:
            body = (await service.caption(png(1))).json()
            sent = {"request_id": body["request_id"], "caption": "  a red circle "}
            assert (await service.client.post("/feedback", json=sent)).status_code == 201
            assert service.metric("feedback_total") == 1
            return body["request_id"]

    request_id = asyncio.run(main())
    (captured,) = read_window(tmp_path, model_version="7", limit=5)
    assert (captured.request_id, captured.image) == (request_id, png(1))
    assert (captured.width, captured.height) == (90, 60)
    assert captured.brightness == pytest.approx(np.asarray(decode(png(1))).mean() / 255, abs=0.05)
    pixels = to_pixels(decode(png(1)), 72)[np.newaxis]
    _, embeddings = model.engine.run(pixels, Generation(1))
    np.testing.assert_allclose(captured.embedding, embeddings[0], atol=1e-5)
    (labelled,) = read_feedback(tmp_path)
    assert (labelled.captions, labelled.image) == (["a red circle"], png(1))


def test_bad_pictures_are_the_clients_problem(model, png, encode, picture) -> None:
    async def main() -> None:
        async with served(model) as service:
            assert_problem(await service.caption(b""), 400)
            assert_problem(await service.caption(png(0)[:100]), 400)
            assert_problem(await service.caption(b"GIF89a"), 400)
            assert_problem(await service.caption(b"hello"), 415)
            assert_problem(await service.caption(encode(picture(0), "BMP")), 415)
            assert_problem(await service.client.post("/caption"), 415)
            assert_problem(await service.client.post("/caption", data={"image": "text"}), 415)
            assert_problem(await service.client.post("/caption", files={"image": (None, "a")}), 422)
            assert_problem(await service.client.post("/caption", files={"picture": png(0)}), 422)
            broken = {"content-type": "multipart/form-data"}
            assert_problem(await service.client.post("/caption", content=b"x", headers=broken), 400)
            assert_problem(await service.client.get("/caption"), 405)
            assert_problem(await service.client.get("/nothing"), 404)
            assert (await service.caption(png(0))).status_code == 200
            assert service.metric("requests_total", route="other", status="404") == 1

    asyncio.run(main())


def test_feedback_that_makes_no_sense_is_refused(model, tmp_path) -> None:
    async def main() -> None:
        async with served(model, captures=tmp_path) as service:
            known = "0" * 32
            for body in (
                {"request_id": known},
                {"request_id": known, "caption": "   "},
                {"request_id": known, "caption": "x" * 1001},
                {"request_id": known, "caption": 5},
                {"request_id": "", "caption": "x"},
                [],
            ):
                assert_problem(await service.client.post("/feedback", json=body), 422)
            lone = b'{"request_id": "a", "caption": "\\ud800"}'
            headers = {"content-type": "application/json"}
            for content in (lone, b"{", b"\xff", b"[" * 100_000):
                response = await service.client.post("/feedback", content=content, headers=headers)
                assert_problem(response, response.status_code)
                assert response.status_code in (400, 422)
            unknown = {"request_id": known, "caption": "a star"}
            assert_problem(await service.client.post("/feedback", json=unknown), 404)

    asyncio.run(main())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.binary(max_size=200),
    kind=st.sampled_from(["application/json", "multipart/form-data; boundary=b", "text/plain", ""]),
    path=st.sampled_from(["/caption", "/feedback"]),
)
def test_no_body_makes_a_server_error(model, content, kind, path) -> None:
    async def main() -> None:
        async with served(model) as service:
            headers = {"content-type": kind}
            response = await service.client.post(path, content=content, headers=headers)
            assert 400 <= response.status_code < 500

    asyncio.run(main())


def test_a_large_body_is_refused_with_and_without_a_length(model) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'

    async def pieces(first: bytes) -> AsyncIterator[bytes]:
        yield first
        for _ in range(20):
            yield b"x" * 100

    async def main() -> None:
        async with served(model, max_body_bytes=1000) as service:
            assert_problem(await service.caption(b"x" * 2000), 413)
            for path, kind, first in (
                ("/caption", "multipart/form-data; boundary=b", part),
                ("/feedback", "application/json", b"["),
            ):
                headers = {"content-type": kind}
                sent = service.client.post(path, content=pieces(first), headers=headers)
                assert_problem(await sent, 413)

    asyncio.run(main())


def test_the_token_is_asked_for_on_every_route(model, png) -> None:
    async def main() -> None:
        async with served(model, token="sesame") as service:
            for given_token in (None, "sesame", "Bearer wrong", "Basic sesame", "Bearer sesamé"):
                value = given_token.encode("latin-1") if given_token else None
                headers = {"authorization": value} if value else {}
                response = await service.caption(png(0), headers=headers)
                assert_problem(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
            assert_problem(await service.client.get("/model"), 401)
            assert_problem(await service.client.get("/openapi.json"), 401)
            for right in ("Bearer sesame", "bearer sesame"):
                response = await service.caption(png(0), headers={"authorization": right})
                assert response.status_code == 200

    asyncio.run(main())


def test_too_many_requests_get_429_and_the_others_their_captions(model, png) -> None:
    async def main() -> None:
        slow, engine = held(model)
        async with served(slow, max_queue=3) as service:
            tasks = [asyncio.ensure_future(service.caption(png(seed))) for seed in range(3)]
            await asyncio.to_thread(engine.entered.wait)
            refused = await service.caption(png(9))
            assert_problem(refused, 429)
            assert int(refused.headers["retry-after"]) >= 1
            engine.go.set()
            assert [task.status_code for task in await asyncio.gather(*tasks)] == [200, 200, 200]
            assert (await service.caption(png(9))).status_code == 200

    asyncio.run(main())


def test_a_client_that_hangs_up_costs_no_computation(model, png) -> None:
    async def main() -> None:
        slow, engine = held(model)
        async with served(slow) as service:
            first = asyncio.ensure_future(service.caption(png(0)))
            await asyncio.to_thread(engine.entered.wait)
            gone = await post_and_hang_up(service, png(1))
            assert gone == 499
            engine.go.set()
            assert (await first).status_code == 200
        assert engine.seen == 1

    asyncio.run(main())


async def post_and_hang_up(service: Served, data: bytes) -> int:
    """The status that a client which sends a picture and leaves would have got."""
    request = service.client.build_request("POST", "/caption", files={"image": data})
    app = service.client._transport.app  # type: ignore[attr-defined]
    messages = [
        {"type": "http.request", "body": request.read(), "more_body": False},
        {"type": "http.disconnect"},
    ]
    status: list[int] = []

    async def receive() -> dict:
        return messages.pop(0)

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            status.append(message["status"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/caption",
        "raw_path": b"/v1/caption",
        "query_string": b"",
        "headers": [(k.lower(), v) for k, v in request.headers.raw],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
        "root_path": "",
    }
    await app(scope, receive, send)
    return status[0]


def test_before_the_start_every_answer_is_503() -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(Entrance())
        async with httpx.AsyncClient(transport=transport, base_url="http://t/v1") as client:
            assert_problem(await client.get("/model"), 503)

    asyncio.run(main())


def test_a_swap_under_load_loses_nothing_and_names_the_right_version(
    model, png, tmp_path, make_tiny_blip
) -> None:
    other = load_model(
        make_tiny_blip(tmp_path / "other", seed=5, version="8", image_size=48), source="test"
    )
    expected = {
        one.version: [
            one.engine.caption(
                to_pixels(decode(png(seed)), one.engine.image_size)[np.newaxis], Generation(8)
            )[0].text
            for seed in range(6)
        ]
        for one in (model, other)
    }
    assert expected["7"] != expected["8"]

    async def main() -> None:
        async with served(replace(model, max_batch=8)) as service:  # more than one batch
            seeds = [number % 6 for number in range(60)]
            tasks = [asyncio.ensure_future(service.caption(png(seed))) for seed in seeds]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            service.runtime.swap(other)
            responses = await asyncio.gather(*tasks)
            versions = set()
            for seed, response in zip(seeds, responses, strict=True):
                assert response.status_code == 200
                version = response.json()["model"]["version"]
                assert response.json()["caption"] == expected[version][seed]
                versions.add(version)
            assert versions == {"7", "8"}
            assert service.metric("model_info", name="tiny", version="7") == 0
            assert service.metric("model_info", name="tiny", version="8") == 1
            assert service.metric("swaps_total") == 1

    asyncio.run(main())


def test_a_model_with_bad_numbers_is_not_served(tiny_blip, tmp_path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_blip, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["vision_model.post_layernorm.bias"] += torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadModelFolder, match="not finite"):
        load_model(folder, source="test")


def test_a_folder_without_a_card_is_served_with_defaults(tiny_blip, tmp_path) -> None:
    folder = shutil.copytree(tiny_blip, tmp_path / "model")
    (folder / "captionloop.json").unlink()
    model = load_model(folder, source="test")
    assert (model.name, model.version) == ("unnamed", "unknown")
    assert model.generation == Generation(max_new_tokens=30, num_beams=1)
    (folder / "captionloop.json").write_text(json.dumps({"generation": {"num_beams": 3}}))
    assert load_model(folder, source="test").generation == Generation(30, num_beams=3)


def test_settings_can_be_shown_without_their_secrets() -> None:
    secrets = {"CAPTIONLOOP_TOKEN": "sesame", "CAPTIONLOOP_TOKENS": '[{"token": "sesame"}]'}
    shown = str(ServiceSettings.from_environment({**secrets, "CAPTIONLOOP_WORKERS": "2"}))
    assert "sesame" not in shown
    assert "workers=2" in shown


def test_settings_say_which_variable_is_wrong() -> None:
    assert ServiceSettings.from_environment({}) == ServiceSettings()
    assert ServiceSettings.from_environment({"CAPTIONLOOP_TOKEN": ""}).token is None
    names = ("FOLLOW_SECONDS", "MAX_BODY_BYTES", "CAPTURE_DAYS", "CAPTURE_MAX_BYTES")
    for name in (f"CAPTIONLOOP_{name}" for name in names):
        for value in ("often", "0", "-1", "inf", "nan"):
            with pytest.raises(BadSetting, match=name):
                ServiceSettings.from_environment({name: value})
    with pytest.raises(BadSetting, match="MLFLOW_TRACKING_URI"):
        ServiceSettings.from_environment({"CAPTIONLOOP_FOLLOW": "models:/a@champion"})
    with pytest.raises(BadSetting, match="CAPTURE_IMAGES"):
        ServiceSettings.from_environment({"CAPTIONLOOP_CAPTURE_IMAGES": "yes"})
