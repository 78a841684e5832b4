import asyncio
import errno
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client import CollectorRegistry

from bentos import packaging
from bentos.captioner import following
from bentos.captioner.challenge import is_canarys
from bentos.captioner.following import Follower
from bentos.captioner.generation import Generation
from bentos.captioner.golden import GoldenMismatch, check_golden, write_golden
from bentos.captioner.images import to_pixels
from bentos.captioner.models import load_model
from bentos.captioner.options import CaptionOptions
from bentos.captioner.runtime import Runtime
from bentos.captioner.settings import ServiceSettings
from bentos.captioner.telemetry import Telemetry

NAME = "captioner-test"
URI = f"models:/{NAME}@champion"


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory) -> Iterator[str]:
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        client.create_experiment(NAME, artifact_location=(folder / "artifacts").as_uri())
        client.create_registered_model(NAME)
        yield uri
        mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def promote(tracking_uri) -> Callable[..., str]:
    """Logs a folder as a LoggedModel, registers it and moves an alias to it."""
    from mlflow import MlflowClient

    def register(folder: Path, alias: str = "champion") -> str:
        client = MlflowClient()
        experiment = client.get_experiment_by_name(NAME).experiment_id
        logged = client.create_logged_model(experiment_id=experiment, name="tiny")
        holder = folder.parent / f"logged-{logged.model_id}"
        shutil.copytree(folder, holder / "model")
        client.log_model_artifacts(logged.model_id, str(holder))
        client.finalize_logged_model(logged.model_id, "READY")
        source = f"models:/{logged.model_id}"
        made = client.create_model_version(NAME, source=source, model_id=logged.model_id)
        client.set_registered_model_alias(NAME, alias, made.version)
        return str(made.version)

    return register


@pytest.fixture
def move(tracking_uri) -> Iterator[Callable[[str, str | None], None]]:
    """Puts an alias on a version, or takes it away; no challenger is left in the end."""
    from mlflow import MlflowClient

    def to(alias: str, version: str | None) -> None:
        if version is None:
            MlflowClient().delete_registered_model_alias(NAME, alias)
        else:
            MlflowClient().set_registered_model_alias(NAME, alias, version)

    yield to
    to("challenger", None)


def with_golden(folder: Path, picture, *, wrong: bool = False) -> Path:
    model = load_model(folder, source="test")
    pixels = [to_pixels(picture(seed), 72) for seed in range(3)]
    captions = [model.engine.caption(image[np.newaxis], Generation(8))[0].text for image in pixels]
    if wrong:
        captions[1] = "what nobody said"
    write_golden(folder, pixels, captions)
    return folder


def not_finite(folder: Path) -> Path:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    damaged = {name: np.full_like(value, np.nan) for name, value in weights.items()}
    save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Following:
    def __init__(self, model_folder: Path, **options: object) -> None:
        self.registry = CollectorRegistry()
        model = load_model(model_folder, source="baked")
        settings = ServiceSettings(**options)
        self.runtime = Runtime(model, settings, Telemetry(self.registry))
        self.follower = Follower(
            self.runtime, URI, every_seconds=0.01, challenger=settings.challenger
        )

    async def versions(self) -> tuple[str, str | None]:
        """Those of the champion and the challenger after a look."""
        await self.follower.check()
        challenger = self.runtime.challenger
        return self.runtime.model.version, challenger and challenger.version

    def count(self, name: str) -> float:
        return self.registry.get_sample_value(f"captioner_{name}_total") or 0.0


def test_golden_captions_are_held_to_the_word(tiny_blip, tmp_path, picture) -> None:
    folder = shutil.copytree(tiny_blip, tmp_path / "model")
    model = load_model(with_golden(folder, picture), source="test")
    assert check_golden(model, folder) == 3
    entries = json.loads((folder / "golden" / "golden.json").read_text())
    entries[2]["caption"] += " x"
    (folder / "golden" / "golden.json").write_text(json.dumps(entries))
    with pytest.raises(GoldenMismatch, match=r"2\.png.* x"):
        check_golden(model, folder)


def test_requests_over_swaps_all_succeed_and_bad_versions_are_refused(
    tiny_blip, make_tiny_blip, tmp_path, promote, picture, encode, caplog
) -> None:
    good = with_golden(make_tiny_blip(tmp_path / "good", seed=1, version="-"), picture)
    lying = shutil.copytree(tiny_blip, tmp_path / "lying")
    with_golden(lying, picture, wrong=True)
    broken = shutil.copytree(tiny_blip, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not a tensor")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "README").write_text("no model here")
    nan = not_finite(shutil.copytree(tiny_blip, tmp_path / "nan"))
    best = make_tiny_blip(tmp_path / "best", seed=2, version="-", image_size=48)

    async def main() -> None:
        service = Following(tiny_blip)
        stop = asyncio.Event()
        versions: list[str] = []

        async def client(seed: int) -> None:
            while not stop.is_set():
                answer = await service.runtime.caption(encode(picture(seed)), CaptionOptions())
                versions.append(answer.model.version)

        clients = [asyncio.ensure_future(client(seed)) for seed in range(4)]
        expected = ["7"]
        for folder, is_good in (
            (good, True),
            (lying, False),
            (broken, False),
            (empty, False),
            (nan, False),
            (best, True),
        ):
            version = await asyncio.to_thread(promote, folder)
            await service.follower.check()
            await service.follower.check()  # a refused version is not fetched again
            expected += [version] * is_good
            assert service.runtime.model.version == expected[-1]
        while versions[-1] != expected[-1]:
            await asyncio.sleep(0)
        stop.set()
        await asyncio.gather(*clients)
        await service.runtime.close()
        assert list(dict.fromkeys(versions)) == expected
        assert service.runtime.model.source == f"models:/{NAME}/{expected[-1]}"
        assert (service.count("swaps"), service.count("swap_failures")) == (2, 4)
        assert service.count("follow_errors") == 0

    with caplog.at_level(logging.ERROR, logger="bentos.captioner.following"):
        asyncio.run(main())
    refusals = [record for record in caplog.records if "refused" in record.message]
    assert len(refusals) == 4
    assert "what nobody said" in refusals[0].message


def test_the_version_baked_in_is_not_fetched_again(tiny_blip, tmp_path, promote) -> None:
    version = promote(tiny_blip)

    async def main() -> None:
        service = Following(tiny_blip)
        service.runtime.swap(load_model(tiny_blip, source="baked", name=NAME, version=version))
        await service.follower.check()
        assert service.runtime.model.source == "baked"
        await service.runtime.close()

    asyncio.run(main())


def test_a_registry_that_fails_is_asked_ever_more_rarely_until_it_answers(
    tiny_blip, promote, tracking_uri, monkeypatch, caplog
) -> None:
    import mlflow

    version = promote(tiny_blip)

    async def main() -> None:
        service = Following(tiny_blip)
        mlflow.set_tracking_uri("http://127.0.0.1:1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        for _ in range(3):
            await service.follower.check()
        assert service.runtime.model.version == "7"
        assert service.count("follow_errors") == 3
        assert service.follower._delay == pytest.approx(0.08)
        mlflow.set_tracking_uri(tracking_uri)
        service.follower._client = None  # the address of a client is fixed
        await service.follower.check()
        assert service.runtime.model.version == version
        assert service.follower._delay == pytest.approx(0.01)
        await service.runtime.close()

    with caplog.at_level(logging.WARNING, logger="bentos.captioner.following"):
        asyncio.run(main())
    assert sum("can't be followed" in record.message for record in caplog.records) == 1


def test_trouble_that_passes_is_waited_out_and_the_version_taken_up(
    tiny_blip, promote, tmp_path, monkeypatch, caplog
) -> None:
    version = promote(tiny_blip)

    async def main() -> None:
        service = Following(tiny_blip)

        def load_with(error: Exception) -> Callable[..., None]:
            def fail(*args: object, **options: object) -> None:
                raise error

            return fail

        no_space = load_with(OSError(errno.ENOSPC, "No space left on device"))
        no_memory = load_with(MemoryError("no memory left"))
        for failures, (where, name, trouble) in enumerate(
            [
                (tempfile, "tempdir", str(tmp_path / "gone")),
                (following, "load_model", no_space),
                (following, "load_model", no_space),
                (following, "load_model", no_memory),
            ],
            start=1,
        ):
            with monkeypatch.context() as patch:
                patch.setattr(where, name, trouble)
                await service.follower.check()
            assert service.runtime.model.version == "7"
            assert service.count("follow_errors") == failures
            assert service.follower._delay == pytest.approx(0.01 * 2**failures)
        await service.follower.check()
        assert service.runtime.model.version == version
        assert service.count("swap_failures") == 0
        assert service.follower._delay == pytest.approx(0.01)
        await service.runtime.close()

    with caplog.at_level(logging.WARNING, logger="bentos.captioner.following"):
        asyncio.run(main())
    # Once for each kind of trouble, not once for each time.
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert "No space left" in messages[1]


def test_artifacts_that_can_not_be_fetched_are_asked_for_again(
    tiny_blip, promote, tracking_uri, tmp_path
) -> None:
    version = promote(tiny_blip)
    artifacts = Path(tracking_uri.removeprefix("sqlite:///")).parent / "artifacts"

    async def main() -> None:
        service = Following(tiny_blip)
        shutil.move(artifacts, tmp_path / "away")
        for _ in range(2):
            await service.follower.check()
        assert service.runtime.model.version == "7"
        assert (service.count("follow_errors"), service.count("swap_failures")) == (2, 0)
        assert service.follower._delay == pytest.approx(0.04)
        shutil.move(tmp_path / "away", artifacts)
        await service.follower.check()
        assert service.runtime.model.version == version
        await service.runtime.close()

    asyncio.run(main())


CHALLENGER = f"models:/{NAME}@challenger"
CANARY, SHADOW = {"canary": CHALLENGER, "canary_share": 0.5}, {"shadow": CHALLENGER}


@pytest.mark.parametrize("role", [CANARY, SHADOW], ids=["canary", "shadow"])
def test_a_challenger_comes_goes_and_is_taken_over_as_champion_without_a_second_load(
    tiny_blip, make_tiny_blip, tmp_path, promote, move, picture, encode, monkeypatch, role
) -> None:
    loads: list[str] = []

    def counting(folder: Path, **options: str):
        loads.append(options["version"])
        return load_model(folder, **options)

    monkeypatch.setattr(following, "load_model", counting)
    first = promote(tiny_blip)
    second = promote(make_tiny_blip(tmp_path / "second", seed=1, version="-"), "challenger")
    third = promote(make_tiny_blip(tmp_path / "third", seed=2, version="-"), "waiting")

    async def main() -> None:
        service = Following(tiny_blip, **role)
        answered: list[str] = []
        stop = asyncio.Event()

        async def client(seed: int) -> None:
            while not stop.is_set():
                data = encode(picture(seed))
                answer = await service.runtime.caption(data, CaptionOptions())
                answered.append(answer.model.version)
                await asyncio.sleep(0.2)  # so that a shadow has its time

        clients = [asyncio.ensure_future(client(seed)) for seed in range(3)]
        assert await service.versions() == (first, second)
        tried = service.runtime.challenger
        assert await service.versions() == (first, second)
        move("challenger", third)
        assert await service.versions() == (first, third)
        move("challenger", None)
        assert await service.versions() == (first, None)
        move("challenger", second)
        assert await service.versions() == (first, second)
        assert service.runtime.challenger is not tried
        tried = service.runtime.challenger
        move("champion", second)  # as a promotion does: first the champion, then the challenger
        assert await service.versions() == (second, None)
        assert service.runtime.model is tried
        move("challenger", None)
        assert await service.versions() == (second, None)
        move("champion", first)  # a rollback
        assert await service.versions() == (first, None)
        move("challenger", first)
        assert await service.versions() == (first, None)
        assert loads == [first, second, third, second, first]
        assert service.count("swaps") == 3
        async with asyncio.timeout(60):
            while first not in answered:
                await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*clients)
        await service.runtime.close()

    asyncio.run(main())


def test_a_promotion_between_two_looks_takes_the_challenger_over_too(
    tiny_blip, make_tiny_blip, tmp_path, promote, move, monkeypatch
) -> None:
    promote(tiny_blip)
    second = promote(make_tiny_blip(tmp_path / "second", seed=1, version="-"), "challenger")

    async def main() -> None:
        service = Following(tiny_blip, **CANARY)
        await service.versions()
        tried = service.runtime.challenger
        move("champion", second)
        move("challenger", None)
        assert await service.versions() == (second, None)
        assert service.runtime.model is tried
        await service.runtime.close()

    asyncio.run(main())


def test_a_bad_challenger_is_refused_once_and_the_one_before_it_tried_out_no_more(
    tiny_blip, make_tiny_blip, tmp_path, promote, move, picture, caplog
) -> None:
    first = promote(tiny_blip)
    good = promote(make_tiny_blip(tmp_path / "good", seed=1, version="-"), "challenger")

    async def main() -> None:
        service = Following(tiny_blip, **CANARY)
        assert await service.versions() == (first, good)
        lying = shutil.copytree(tiny_blip, tmp_path / "lying")
        promote(with_golden(lying, picture, wrong=True), "challenger")
        for _ in range(3):
            assert await service.versions() == (first, None)
        assert (service.count("swap_failures"), service.count("follow_errors")) == (1, 0)
        await service.runtime.close()

    with caplog.at_level(logging.ERROR, logger="bentos.captioner.following"):
        asyncio.run(main())
    (report,) = caplog.records
    assert "refused as challenger" in report.getMessage()
    assert f"version {first} keeps answering" in report.getMessage()


def test_a_canary_that_was_taken_out_is_not_loaded_again_until_its_alias_moves(
    tiny_blip, make_tiny_blip, tmp_path, promote, move
) -> None:
    first = promote(tiny_blip)
    second = promote(make_tiny_blip(tmp_path / "second", seed=1, version="-"), "challenger")

    async def main() -> None:
        service = Following(tiny_blip, **CANARY)
        assert await service.versions() == (first, second)
        service.runtime.challenge(None)  # as the runtime does after too many failures
        assert await service.versions() == (first, None)
        move("challenger", None)
        assert await service.versions() == (first, None)
        move("challenger", second)
        assert await service.versions() == (first, second)
        await service.runtime.close()

    asyncio.run(main())


def test_trouble_with_a_challenger_holds_no_champion_up(
    tiny_blip, make_tiny_blip, tmp_path, promote, move, monkeypatch
) -> None:
    first = promote(tiny_blip)
    second = promote(make_tiny_blip(tmp_path / "second", seed=1, version="-"), "challenger")
    loads: list[str] = []

    def no_memory_for_second(folder: Path, **options: str):
        loads.append(options["version"])
        if options["version"] == second:
            raise MemoryError("no memory left")
        return load_model(folder, **options)

    monkeypatch.setattr(following, "load_model", no_memory_for_second)

    async def main() -> None:
        service = Following(tiny_blip, **SHADOW)
        for _ in range(3):
            assert await service.versions() == (first, None)
        assert loads == [first, second]  # not at every look
        assert service.count("follow_errors") == 1
        assert service.follower._delay == pytest.approx(0.01)
        third = await asyncio.to_thread(promote, tiny_blip)
        assert await service.versions() == (third, None)
        monkeypatch.setattr(following, "load_model", load_model)
        service.follower._not_before = 0.0
        assert await service.versions() == (third, second)
        await service.runtime.close()

    asyncio.run(main())


def test_memory_is_at_its_level_again_after_every_swap(
    make_tiny_blip, tmp_path, promote, move, picture, encode
) -> None:
    folders = [
        make_tiny_blip(tmp_path / name / "m", seed=seed, version="-", width=768)
        for seed, name in enumerate(("even", "odd"))
    ]
    versions = [promote(folder) for folder in folders]
    size_bytes = (folders[0] / "model.safetensors").stat().st_size
    assert size_bytes > 40e6
    rss: list[int] = []

    async def main() -> None:
        service = Following(folders[0])
        pictures = [encode(picture(seed)) for seed in range(8)]
        for turn in range(10):
            move("champion", versions[turn % 2])
            await service.follower.check()
            assert service.runtime.model.version == versions[turn % 2]
            await asyncio.gather(
                *(service.runtime.caption(data, CaptionOptions()) for data in pictures)
            )
            await service.follower.check()
            rss.append(psutil.Process().memory_info().rss)
        await service.runtime.close()

    asyncio.run(main())
    print("RSS in MB after each swap:", [round(size / 1e6) for size in rss])
    assert max(rss) - rss[0] < size_bytes / 2


@pytest.mark.e2e
def test_a_served_bento_gives_the_canary_its_share_until_the_alias_is_gone(
    tag, tiny_blip, make_tiny_blip, tmp_path, promote, move, tracking_uri, picture, encode
) -> None:
    first = promote(tiny_blip)
    second = promote(make_tiny_blip(tmp_path / "second", seed=1, version="-"), "challenger")
    env = {
        "MLFLOW_TRACKING_URI": tracking_uri,
        "CAPTIONLOOP_FOLLOW": URI,
        "CAPTIONLOOP_FOLLOW_SECONDS": "0.2",
        "CAPTIONLOOP_CANARY": CHALLENGER,
        "CAPTIONLOOP_CANARY_SHARE": "0.5",
        "OMP_NUM_THREADS": "1",
    }

    def versions_by_key(client: httpx.Client) -> dict[str, str]:
        answered = {}
        for key in map(str, range(20)):
            answer = client.post(
                "/v1/caption",
                files={"image": encode(picture(int(key)))},
                headers={"X-Canary-Key": key},
            )
            answered[key] = answer.raise_for_status().json()["model"]["version"]
        return answered

    def until_challenger_is(client: httpx.Client, expected: dict | None) -> None:
        deadline = time.monotonic() + 60
        told: dict = {}
        while told.get("version") != first or told["challenger"] != expected:
            assert time.monotonic() < deadline, told
            time.sleep(0.1)
            told = client.get("/v1/model").json()

    with (
        packaging.serve(tag, port=packaging.free_port(), env=env) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        tried = {"name": NAME, "version": second, "role": "canary", "share": 0.5}
        until_challenger_is(client, tried)
        answered = versions_by_key(client)
        assert answered == {
            key: second if is_canarys(key.encode(), second, 0.5) else first for key in answered
        }
        counted = f"captioner_canary_answers_total {float([*answered.values()].count(second))}"
        assert counted in client.get("/metrics").text.splitlines()
        move("challenger", None)
        until_challenger_is(client, None)
        assert set(versions_by_key(client).values()) == {first}
