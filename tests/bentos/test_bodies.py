"""What may be sent to be captioned, in which bodies, with which options."""

import asyncio
import base64

import httpx
import numpy as np
import pytest

from bentos.captioner.generation import Generation
from bentos.captioner.images import decode, to_pixels
from bentos.captioner.options import CaptionOptions
from tests.bentos.serving import assert_problem, held, served


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_multipart_json_and_the_bare_picture_get_the_same_caption(model, png) -> None:
    async def main() -> None:
        async with served(model) as service:
            post, picture = service.client.post, png(3)
            options = {"max_new_tokens": 5, "num_beams": 3, "prompt": "a red"}
            responses = [
                await post("/caption", files={"image": picture}, data=options),
                await post("/caption", files={"image": picture}, params=options),
                await post("/caption", json={"image": b64(picture), **options}),
                await post("/caption", content=picture, headers=PNG, params=options),
            ]
            expected = model.engine.caption(
                to_pixels(decode(picture), 72)[np.newaxis], Generation(5, 3, prompt="a red")
            )[0]
            for response in responses:
                assert response.status_code == 200, response.text
                body = response.json()
                assert body["caption"] == expected.text
                assert body["log_probability"] == pytest.approx(expected.log_probability, abs=1e-4)
                assert body["captions"][0]["caption"] == expected.text
                assert body["request_id"] == response.headers["x-request-id"]
            body_wins = await post(
                "/caption", json={"image": b64(picture), "max_new_tokens": 5}, params=options
            )
            assert body_wins.json()["caption"] == expected.text

    asyncio.run(main())


PNG = {"content-type": "image/png"}


def test_options_beyond_the_limits_or_at_odds_are_refused(model, png) -> None:
    refused = [
        {"max_new_tokens": 0},
        {"max_new_tokens": 21},
        {"max_new_tokens": "many"},
        {"num_beams": 4},
        {"num_captions": 4},
        {"num_beams": 1, "num_captions": 2},
        {"prompt": "a" * 201},
        {"num_beam": 2},
    ]

    async def main() -> None:
        async with served(model, max_new_tokens=20, max_beams=3) as service:
            for options in refused:
                data = {name: str(value) for name, value in options.items()}
                for sent in (
                    {"files": {"image": png(0)}, "data": data},
                    {"json": {"image": b64(png(0)), **options}},
                    {"content": png(0), "headers": PNG, "params": data},
                ):
                    response = await service.client.post("/caption", **sent)
                    assert_problem(response, 422)
                    assert next(iter(options)) in response.json()["detail"]
            overruled = {"files": {"image": png(0)}, "data": {"num_captions": 1}}
            overruled["params"] = {"num_captions": 4}
            assert_problem(await service.client.post("/caption", **overruled), 422)

    asyncio.run(main())


def test_a_prompt_that_leaves_no_room_is_refused_and_fails_nobody_else(model, png) -> None:
    async def main() -> None:
        async with served(model) as service:
            long = {"prompt": "red " * 50, "max_new_tokens": 30}  # the model has 64 positions
            sent = [
                service.client.post("/caption", files={"image": png(0)}, data=long),
                service.caption(png(1)),
            ]
            refused, good = await asyncio.gather(*sent)
            assert_problem(refused, 422)
            assert "room for" in refused.json()["detail"]
            assert good.status_code == 200

    asyncio.run(main())


def test_a_caption_may_fill_every_position_of_the_model(model, png) -> None:
    async def main() -> None:
        async with served(model) as service:
            sent = {"files": {"image": png(0)}, "data": {"max_new_tokens": "64"}}
            response = await service.client.post("/caption", **sent)
            assert response.status_code == 200, response.text

    asyncio.run(main())


def test_options_give_a_search_that_always_holds_its_captions() -> None:
    card = Generation(max_new_tokens=30, num_beams=2, min_new_tokens=5, prompt="a photo of")
    assert CaptionOptions().over(card) == card
    asked = CaptionOptions(prompt="", max_new_tokens=3, num_captions=4).over(card)
    assert asked == Generation(3, 4, 3, "", num_captions=4)
    assert CaptionOptions(num_beams=1).over(card).num_beams == 1


def test_a_request_of_many_pictures_tells_of_each(model, png) -> None:
    async def main() -> None:
        async with served(model, max_pixels=6_000) as service:
            alone = [(await service.caption(png(seed))).json()["caption"] for seed in range(3)]
            bad = [b"no picture", png(0)[:100], b""]
            pictures = [png(0), bad[0], png(1), bad[1], bad[2], png(2)]
            form = [("images", ("picture", picture)) for picture in pictures]
            document = {"images": [b64(picture) for picture in pictures] + ["&"]}
            for sent, more in (({"files": form}, []), ({"json": document}, [422])):
                response = await service.client.post("/captions", **sent)
                assert response.status_code == 200, response.text
                results = response.json()["results"]
                captions = [one["caption"] for one in results if "caption" in one]
                statuses = [one["problem"]["status"] for one in results if "problem" in one]
                assert captions == alone
                assert statuses == [415, 400, 400, *more]
                ids = {one["request_id"] for one in results if "request_id" in one}
                assert len(ids) == 3
            assert service.metric("images_total", outcome="captioned") == 9
            assert service.metric("images_total", outcome="refused") == 6
            options = {"num_beams": 0}
            assert_problem(await service.client.post("/captions", files=form, data=options), 422)

    asyncio.run(main())


def test_a_request_of_many_pictures_is_bounded_and_leaves_places_to_others(model, png) -> None:
    async def main() -> None:
        slow, engine = held(model)
        async with served(slow, max_images=30, max_queue=17) as service:
            for count in (0, 31):
                form = [("images", ("picture", png(0)))] * count
                sent = {"files": form} if form else {"json": {"images": []}}
                assert_problem(await service.client.post("/captions", **sent), 422)
            form = [("images", ("picture", png(seed))) for seed in range(30)]
            many = asyncio.ensure_future(service.client.post("/captions", files=form))
            await asyncio.to_thread(engine.entered.wait)
            lone = asyncio.ensure_future(service.caption(png(0)))
            await asyncio.sleep(0.05)
            engine.go.set()
            assert (await lone).status_code == 200
            results = (await many).json()["results"]
            assert ["caption" in one for one in results] == [True] * 30

    asyncio.run(main())


def test_too_many_pixels_are_refused_with_413(model, png) -> None:
    async def main() -> None:
        async with served(model, max_pixels=90 * 60 - 1) as service:
            assert_problem(await service.caption(png(0)), 413)

    asyncio.run(main())


@pytest.mark.parametrize("charset", ["punycode", "utf-16", "base64", "none", "a\0b"])
def test_no_charset_of_a_form_makes_a_server_error(model, png, charset) -> None:
    request = httpx.Request("POST", "http://test", files={"image": png(0)})
    content_type = f"{request.headers['content-type']}; charset={charset}"

    async def main() -> None:
        async with served(model) as service:
            response = await service.client.post(
                "/caption", content=request.read(), headers={"content-type": content_type}
            )
            assert response.status_code in (200, 400, 422)

    asyncio.run(main())


def test_json_is_taken_at_its_word(model, png) -> None:
    picture = b64(png(0))

    async def main() -> None:
        async with served(model) as service:
            for body in (
                {"image": picture, "num_beams": "2"},
                {"image": picture, "num_beams": True},
                {"image": picture[:-1] + "!"},
                {"image": "ü"},
                {"image": None},
                {"picture": picture},
                {},
                [],
            ):
                assert_problem(await service.client.post("/caption", json=body), 422)
            json_type = {"content-type": "application/json"}
            for content in (b"", b"{", b"\xff", b"[" * 100_000, b'{"image": "\\ud800"}'):
                response = await service.client.post("/caption", content=content, headers=json_type)
                assert_problem(response, 422)

    asyncio.run(main())


def test_a_deleted_capture_is_gone(model, png, tmp_path) -> None:
    from bentos.captioner.capture import read_window

    async def main() -> None:
        async with served(model, captures=tmp_path) as service:
            kept, gone = [
                (await service.caption(png(seed))).json()["request_id"] for seed in (0, 1)
            ]
            path = f"/captures/{gone}"
            response = await service.client.delete(path)
            assert (response.status_code, response.content) == (204, b"")
            assert_problem(await service.client.delete(path), 404)
            assert_problem(await service.client.delete("/captures/" + "x" * 65), 422)
            sent = {"request_id": gone, "caption": "late"}
            assert_problem(await service.client.post("/feedback", json=sent), 404)
            assert service.metric("captures_deleted_total") == 1
            left = read_window(tmp_path, model_version=None, limit=9)
            assert [one.request_id for one in left] == [kept]

    asyncio.run(main())
