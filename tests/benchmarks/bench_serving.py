"""The service against what tutorials ship: `python -m tests.benchmarks.bench_serving [PART …]`.

A Bento served as a process of its own, and `tutorial_server` (FastAPI and uvicorn, one picture a
request, `model.generate`), the same weights, pictures and cores, by turns; a third process sends
the load, closed-loop. The parts: tiny, base, captures, swaps. Ends with 1 if a goal is missed.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from threading import Thread

import httpx
import numpy as np
from PIL import Image

from tests.benchmarks.load import Load, drive

MANY = 32
ROUNDS = 5
SECONDS = 6.0
SWAP_SECONDS, SWAP_EVERY = 60.0, 2.0
REGISTERED = "bench"


@dataclass(frozen=True)
class Scenario:
    """A model folder, pictures for it, and how long its captions are."""

    folder: Path
    pictures: Path
    longest: int


class Goals:
    """What was promised, and what was measured."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def say(self, what: str, value: float, least: float = 0.0, most: float = np.inf) -> None:
        bound = f"≥ {least:g}" if least else f"≤ {most:.3g}" if most < np.inf else ""
        met = least <= value <= most
        verdict = "" if not bound else "met" if met else "**missed**"
        print(f"| {what} | {value:.3g} | {bound} | {verdict} |", flush=True)
        if not met:
            self.missed.append(what)


def tiny(scratch: Path) -> Scenario:
    """The demo's model and pictures."""
    from tests.benchmarks.bench_engine import pictures, tiny_parts

    folder = scratch / "pictures"
    folder.mkdir()
    for number, pixels in enumerate(pictures(64, 96)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return Scenario(save(tiny_parts(), scratch / "tiny", 30), folder, 30)


def base(scratch: Path) -> Scenario:
    """BLIP-base's size, and photos of 500 × 375 pixels: real ones where they are."""
    from tests.benchmarks.bench_engine import pictures
    from tests.benchmarks.bench_train import base_parts
    from tests.conftest import PHOTOS

    folder = scratch / "photos"
    folder.mkdir()
    photos = [Image.open(path) for path in sorted((PHOTOS / "images").glob("*.jpg"))[:64]]
    for number, photo in enumerate(photos or map(Image.fromarray, pictures(64, 384))):
        photo.convert("RGB").resize((500, 375)).save(folder / f"{number}.jpg", quality=90)
    return Scenario(save(base_parts(), scratch / "base", 20), folder, 20)


def save(parts: object, folder: Path, longest: int, version: str = "1") -> Path:
    from tasks.training import model as models

    folder.mkdir()
    models.save(parts, folder)
    generation = {"max_new_tokens": longest, "num_beams": 1}
    card = {"name": REGISTERED, "version": version, "generation": generation}
    (folder / "captionloop.json").write_text(json.dumps(card))
    return folder


def build(scenario: Scenario) -> str:
    from bentos import packaging

    return packaging.build(scenario.folder, labels={})


@contextlib.contextmanager
def ours(tag: str, **settings: str) -> Iterator[str]:
    from bentos import packaging

    env = {f"CAPTIONLOOP_{name}": value for name, value in settings.items()}
    env["CAPTIONLOOP_ANSWER_SECONDS"] = "600"
    with packaging.serve(tag, port=packaging.free_port(), env=env) as url:
        yield url


@contextlib.contextmanager
def tutorial(scenario: Scenario) -> Iterator[str]:
    from bentos import packaging

    port = packaging.free_port()
    command = ["uvicorn", "tests.benchmarks.tutorial_server:app", "--port", str(port)]
    env = {**os.environ, "MODEL": str(scenario.folder), "MAX_NEW_TOKENS": str(scenario.longest)}
    with subprocess.Popen(
        [sys.executable, "-m", *command, "--log-level", "error", "--no-access-log"], env=env
    ) as process:
        url = f"http://127.0.0.1:{port}"
        while process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url)
                break
            time.sleep(0.2)
        try:
            yield url
        finally:
            process.terminate()


def compare(
    name: str, scenario: Scenario, rounds: int, load: Callable[..., Load], least: dict[str, float]
) -> list[str]:
    """The tables of one model; returns the goals that were missed."""
    tag = build(scenario)
    seen: dict[str, list[Load]] = {}
    in_process = InProcess(scenario)
    with ours(tag) as url, tutorial(scenario) as other:
        ways = {"ours": url, "tutorial, in the loop": other}
        if rounds > 1:  # with 32 pictures of BLIP-base's size at once it takes hours
            ways["tutorial, in threads"] = f"{other}/threads"
        for _ in range(rounds):
            for clients in (1, MANY):
                for way, at in ways.items():
                    seen.setdefault(f"{clients}: {way}", []).append(
                        load(f"{at}/v1/caption", scenario.pictures, clients=clients)
                    )
            in_process.measure()
    print(f"\n| {name}: clients, server | captions/s | p50, ms | p95, ms | p99, ms | failed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for way, loads in seen.items():
        told = " | ".join(f"{of(loads, what) * 1000:.1f}" for what in ("p50", "p95", "p99"))
        failed = sum(one.failed for one in loads)
        print(f"| {way} | {of(loads, 'throughput'):.1f} | {told} | {failed} |")
    print("\n| in this process, from bytes: pictures at once | captions/s | engine alone |")
    print("| --- | --- | --- |")
    for batch, (whole, alone) in in_process.rates().items():
        print(f"| {batch} | {whole:.1f} | {alone:.1f} |")
    return judge(name, seen, max(whole for whole, _ in in_process.rates().values()), least)


def judge(
    name: str, seen: dict[str, list[Load]], in_process: float, least: dict[str, float]
) -> list[str]:
    goals = Goals()
    others = [way for way in seen if way.startswith(f"{MANY}: tutorial")]
    best = max(others, key=lambda way: of(seen[way], "throughput"))
    quickest = min(others, key=lambda way: of(seen[way], "p95"))
    lone = min(of(seen[way], "p50") for way in seen if way.startswith("1: tutorial"))
    mine = seen[f"{MANY}: ours"]
    print(f"\n| {name} | measured | goal | |\n| --- | --- | --- | --- |")
    throughput = of(mine, "throughput")
    goals.say(
        f"throughput at {MANY} clients, × the better tutorial",
        throughput / of(seen[best], "throughput"),
        least=least["throughput"],
    )
    goals.say(
        f"p95 at {MANY} clients, × the better tutorial",
        of(mine, "p95") / of(seen[quickest], "p95"),
        most=least["p95"],
    )
    goals.say(
        "a lone client's p50, × the better tutorial", of(seen["1: ours"], "p50") / lone, most=0.4
    )
    goals.say(
        f"throughput at {MANY} clients, × the engine in process",
        throughput / in_process,
        least=least["in process"],
    )
    goals.say("requests that failed", sum(one.failed for one in mine), most=0)
    return [f"{name}: {what}" for what in goals.missed]


def of(loads: list[Load], what: str) -> float:
    return median(getattr(one, what) for one in loads)


class InProcess:
    """The engine called from the same bytes, without a server: its best batch."""

    def __init__(self, scenario: Scenario) -> None:
        from bentos.captioner.engine import Engine
        from bentos.captioner.generation import Generation

        self._engine = Engine.load(scenario.folder, device="cpu")
        self._generation = Generation(scenario.longest)
        self._data = [path.read_bytes() for path in sorted(scenario.pictures.iterdir())]
        self._batches = (8, 32, 64) if self._engine.image_size < 200 else (4, 8)
        self._seconds: dict[int, list[tuple[float, float]]] = {}

    def measure(self) -> None:
        for batch in self._batches:
            self._seconds.setdefault(batch, []).append(self._once(batch))

    def rates(self) -> dict[int, tuple[float, float]]:
        """Captions/s by batch: from bytes, and of pixels that are there."""
        return {
            batch: (batch / min(whole for whole, _ in seconds), batch / min(s for _, s in seconds))
            for batch, seconds in self._seconds.items()
        }

    def _once(self, batch: int) -> tuple[float, float]:
        from bentos.captioner.images import decode, to_pixels

        size = self._engine.image_size
        started = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            decoded = pool.map(
                lambda data: to_pixels(decode(data, side=size), size), self._data[:batch]
            )
            pixels = np.stack(list(decoded))
        there = time.perf_counter()
        self._engine.run(pixels, self._generation)
        ended = time.perf_counter()
        return ended - started, ended - there


def captures(scenario: Scenario, scratch: Path) -> list[str]:
    """Throughput with captures against without, pictures kept."""
    tag = build(scenario)
    ratios, goals = [], Goals()
    with ours(tag) as off, ours(tag, CAPTURES=str(scratch / "captures")) as on:
        for turn in range(2 * ROUNDS):
            pair = (on, off) if turn % 2 else (off, on)
            loads = {
                url: drive(f"{url}/v1/caption", scenario.pictures, clients=MANY, seconds=SECONDS)
                for url in pair
            }
            ratios.append(loads[on].throughput / loads[off].throughput)
    print("\n| captures | measured | goal | |\n| --- | --- | --- | --- |")
    goals.say("throughput with, × without (median of 10 turns)", median(ratios), least=0.97)
    print("turns:", " ".join(f"{ratio:.2f}" for ratio in ratios))
    return goals.missed


def swaps(scenario: Scenario, scratch: Path) -> list[str]:
    """Hot swaps under load, through a registry."""
    from mlflow import MlflowClient

    goals = Goals()
    with registry(scratch) as uri:
        versions = [register(scenario.folder, scratch / f"logged{number}") for number in (1, 2)]
        client = MlflowClient()
        with ours(
            build(scenario), FOLLOW=f"models:/{REGISTERED}@champion", FOLLOW_SECONDS="0.5"
        ) as url:
            at = f"{url}/v1/caption"
            settle(url, client, versions[0])
            load = partial(drive, at, scenario.pictures, clients=MANY)
            quiet = load(seconds=SWAP_SECONDS / 3)
            flips = Thread(target=flip, args=(client, versions))
            flips.start()
            busy = load(seconds=SWAP_SECONDS)
            flips.join()
            settle(url, client, versions[0])
            after = load(seconds=SWAP_SECONDS / 3)
            swapped = metric(url, "captioner_swaps_total")
    print(f"\n| {uri.split(':')[0]} registry | captions/s | p50, ms | p95, ms | p99, ms | failed |")
    print("| --- | --- | --- | --- | --- | --- |")
    for what, one in {"no swaps": quiet, "swaps": busy, "no swaps again": after}.items():
        told = " | ".join(f"{value * 1000:.1f}" for value in (one.p50, one.p95, one.p99))
        print(f"| {what} | {one.throughput:.1f} | {told} | {one.failed} |")
    print(f"{swapped:.0f} swaps; answers by version while they went on: {busy.versions}")
    print("\n| hot swaps | measured | goal | |\n| --- | --- | --- | --- |")
    goals.say("requests that failed or were lost", busy.failed, most=0)
    goals.say("p99, × without swaps", busy.p99 / max(quiet.p99, after.p99), most=2)
    goals.say("versions that answered", len(busy.versions), least=2)
    return goals.missed


@contextlib.contextmanager
def registry(scratch: Path) -> Iterator[str]:
    """An MLflow server on SQLite, as this process's registry."""
    from bentos import packaging

    port = packaging.free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{scratch / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(scratch / "artifacts")]
    url = f"http://127.0.0.1:{port}"
    os.environ["MLFLOW_TRACKING_URI"] = url
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        while server.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{url}/health")
                break
            time.sleep(0.5)
        try:
            yield url
        finally:
            server.terminate()


def register(folder: Path, holder: Path) -> str:
    """A version of the model in the registry."""
    import shutil

    from mlflow import MlflowClient, create_experiment
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    with contextlib.suppress(MlflowException):
        client.create_registered_model(REGISTERED)
    experiment = create_experiment(holder.name)
    logged = client.create_logged_model(experiment_id=experiment, name=REGISTERED)
    shutil.copytree(folder, holder / "model")
    client.log_model_artifacts(logged.model_id, str(holder))
    client.finalize_logged_model(logged.model_id, "READY")
    made = client.create_model_version(
        REGISTERED, source=f"models:/{logged.model_id}", model_id=logged.model_id
    )
    return str(made.version)


def flip(client: object, versions: list[str]) -> None:
    """Move the alias to and fro, as long as the load lasts with its warm-up."""
    ends = time.perf_counter() + 1.2 * SWAP_SECONDS
    turn = 1
    while time.perf_counter() < ends:
        client.set_registered_model_alias(REGISTERED, "champion", versions[turn % 2])
        turn += 1
        time.sleep(SWAP_EVERY)


def settle(url: str, client: object, version: str) -> None:
    client.set_registered_model_alias(REGISTERED, "champion", version)
    while httpx.get(f"{url}/v1/model").json()["version"] != version:
        time.sleep(0.2)


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def main(parts: list[str]) -> None:
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["BENTOML_HOME"] = f"{name}/bentoml"
        os.environ["BENTOML_DO_NOT_TRACK"] = "True"
        small = tiny(scratch)
        if "tiny" in parts:
            load = partial(drive, seconds=SECONDS)
            # In process a caption of it takes less than HTTP does: no goal there.
            goals = {"throughput": 8.0, "p95": 1 / 6, "in process": 0.0}
            missed += compare("tiny BLIP", small, ROUNDS, load, goals)
        if "captures" in parts:
            missed += captures(small, scratch)
        if "swaps" in parts:
            missed += swaps(small, scratch)
        if "base" in parts:

            def load_of_base(url: str, pictures: Path, *, clients: int) -> Load:
                return drive(url, pictures, clients=clients, requests=8 if clients == 1 else 64)

            goals = {"throughput": 3.0, "p95": 0.5, "in process": 0.85}
            missed += compare("BLIP-base's size", base(scratch), 1, load_of_base, goals)
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main(sys.argv[1:] or ["tiny", "captures", "swaps", "base"])
