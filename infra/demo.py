"""`make demo`: the whole loop as a story, on real servers, from nothing to a model that was
retrained because the world moved."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from configs.loader import load
from configs.schema import Config
from infra.pictures import beside
from infra.stack import Stack, StackError
from infra.visitors import Answer, Traffic, Visitor, send
from tasks.data.scenes import scene
from tasks.metrics.scores import score
from tasks.refs import VersionRef
from tasks.registry import history, lineage

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from infra.observer import Stage

CONFIG = "configs/demo.yaml"
SHIFTED_WORLD = "night"
APP_SEED = 1_000_003  # the app's scenes are none of the training scenes
RETRAINING_START_SECONDS = 90.0
SWAP_SECONDS = 60.0


class StoryError(RuntimeError):
    """A step of the story did not happen."""


class Teller:
    """Prints the story: chapters with the time each took, and a bar for what takes long."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.chapters: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        self.console.print(f"\n[bold cyan]{len(self.chapters) + 1}. {title}[/]")
        start = time.monotonic()
        yield
        self.chapters.append((title, time.monotonic() - start))

    def say(self, line: str) -> None:
        self.console.print(f"   {line}")

    def show(self, image: Image.Image, lines: list[str]) -> None:
        """A picture with lines beside it; only the lines where there is no terminal."""
        if self.console.is_terminal:
            self.console.print(beside(image, lines))
        else:
            for line in lines:
                self.say(line)

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[Progress]:
        words = TextColumn("{task.description}")
        columns = (SpinnerColumn(), words, BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            progress.add_task(f"  {what}", total=None)
            yield progress

    def stage(self, stage: "Stage") -> None:
        how = "[green]cache hit[/], nothing to do" if stage.cached else f"{stage.seconds:.1f} s"
        self.say(f"[green]✓[/] {stage.name:<18} {how}")


def main() -> int:
    teller = Teller(Console(highlight=False))
    config = load(CONFIG)
    start = time.monotonic()
    teller.console.print("[bold]captionloop[/]: a captioner that is kept good")
    try:
        with Stack(config.name) as stack:
            Story(teller, config, stack).tell()
    except (StackError, StoryError, httpx.HTTPError) as error:
        teller.console.print(f"\n[bold red]The story broke:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        teller.console.print("\nStopped; every process is ended. Run it again any time.")
        return 130
    _epilogue(teller, time.monotonic() - start)
    return 0


class Story:
    """The chapters, in order; each raises when what it tells did not happen."""

    def __init__(
        self,
        teller: Teller,
        config: Config,
        stack: Stack,
        *,
        ordinary_requests: int = 200,
        novel_requests: int = 60,
        shifted_requests: int = 450,
    ) -> None:
        self.teller, self.config, self.stack = teller, config, stack
        self.ordinary_requests = ordinary_requests
        self.novel_requests = novel_requests
        self.shifted_requests = shifted_requests
        self.requests_sent = 0

    def tell(self) -> None:
        self.start_servers()
        self.train_first_model()
        self.serve()
        self.ordinary_day()
        self.world_shifts()
        self.retrain()
        self.compare()

    def start_servers(self) -> None:
        with self.teller.chapter("Servers"):
            with self.teller.working("Prefect and MLflow start"):
                self.stack.start_servers()
                # Prefect reads its settings on import: only now does it find our server.
                from infra.observer import Observer

                self.observer = Observer(self.stack.prefect_url, self.stack.check)
                closed = self.observer.close_unfinished_runs()
            with self.teller.working("the flows are deployed, a worker starts"):
                self.stack.start_worker()
                self.observer.pause_schedules()
                history.retire(self.config.name, why="the demo starts over", by="the demo")
                kept = self._set_captures_aside()
            self.teller.say(f"Prefect {self.stack.prefect_url}   MLflow {self.stack.mlflow_url}")
            if kept:
                self.teller.say(f"the story starts over; earlier captures are kept in {kept}")
            if closed:
                self.teller.say(f"{closed} unfinished runs of a demo that was killed are closed")

    def train_first_model(self) -> None:
        with self.teller.chapter("Data → a trained, judged, packaged model"):
            self._follow("train/demo")
            self.first = self._champion()
            scores = lineage.scores(self.first)["test"]
            self.teller.say(
                f"v{self.first.version} on its test split: CIDEr [bold]{scores['cider']:.2f}[/], "
                f"BLEU-4 {scores['bleu_4']:.2f}, ROUGE-L {scores['rouge_l']:.2f}"
            )
            self._say_verdict(self.first)

    def serve(self) -> None:
        with self.teller.chapter("Served over HTTP"):
            bento = lineage.bento(self.first)
            assert bento is not None
            with self.teller.working(f"{bento} starts"):
                self.stack.start_service(bento)
            with Visitor(self.stack.service_url) as visitor:
                answer = visitor.ask(scene(APP_SEED, 0, "day"))
                _require(answer.version == str(self.first.version), "another version answers")
            self._show(answer)

    def ordinary_day(self) -> None:
        with self.teller.chapter("An ordinary day"):
            answers = self._send("day", self.ordinary_requests, correcting=False)
            self.day_score = _cider(answers)
            self.teller.say(f"{len(answers)} requests, live CIDEr {self.day_score:.2f}")
            drifted, message = self._monitor()
            self.teller.say(f"monitor: {message}")
            _require(not drifted, "the monitor saw drift on an ordinary day")

    def world_shifts(self) -> None:
        with self.teller.chapter(f"The world shifts: {SHIFTED_WORLD}"):
            new_things = _cider(self._send("novel", self.novel_requests, correcting=False))
            self.teller.say(
                f"first new colours and shapes: live CIDEr {self.day_score:.2f} → "
                f"[bold red]{new_things:.2f}[/]; then night falls"
            )
            _require(new_things < self.day_score / 2, "the first model knows the novel world")
            answers = self._send(SHIFTED_WORLD, self.shifted_requests, correcting=True)
            night_score = _cider(answers)
            self._show(answers[0])
            self.teller.say(
                f"{len(answers)} requests, live CIDEr {self.day_score:.2f} → "
                f"[bold red]{night_score:.2f}[/]; the users posted what they would have written"
            )
            _require(
                night_score < self.day_score / 2, "the first model does not drop on the new world"
            )
            self.confused = answers[0]
            self.event_time = datetime.now(UTC) - timedelta(seconds=1)
            drifted, message = self._monitor()
            self.teller.say(f"monitor: [bold]{message}[/]")
            _require(drifted, "the monitor saw no drift in a shifted world")

    def retrain(self) -> None:
        with self.teller.chapter("The drift event starts a retraining"):
            with self.teller.working("waiting for the automation"):
                run = self.observer.await_run(
                    "demo-retrain", self.event_time, RETRAINING_START_SECONDS
                )
            self.teller.say(f"run [bold]{run.name}[/], reason: {run.parameters['reason']}")
            swap = Traffic(self.stack.service_url, SHIFTED_WORLD, APP_SEED + 1)

            def on_stage(stage: "Stage") -> None:
                self.teller.stage(stage)
                if stage.name == "gate":
                    traffic.enter_context(swap)

            with contextlib.ExitStack() as traffic:
                self._follow_run(run, on_stage)
                self.second = self._champion()
                self._say_verdict(self.second)
                _require(self.second.version != self.first.version, "the old champion still stands")
                self._await_version(swap, str(self.second.version))
            _require(not swap.failures, f"requests failed during the swap: {swap.failures[:3]}")
            self.teller.say(
                f"the service swapped to v{self.second.version} under traffic: "
                f"{len(swap.versions)} requests, none failed"
            )

    def compare(self) -> None:
        with self.teller.chapter("The same service, the same picture, the new model"):
            with Visitor(self.stack.service_url) as visitor:
                answer = visitor.ask(self.confused.scene)
            _require(answer.version == str(self.second.version), "the old version answers")
            self._show(answer, before=self.confused.caption)
            comparisons = lineage.comparisons(self.second)
            versions_told = (f"v{self.first.version}", f"v{self.second.version}")
            table = Table("CIDEr on", *versions_told, "difference")
            for name, label in (("test", "the old world"), ("current", "the new world")):
                found = comparisons[name]
                table.add_row(
                    label,
                    f"{found['champion']:.2f}",
                    f"{found['candidate']:.2f}",
                    f"{found['difference']:+.2f} ({found['low']:+.2f} … {found['high']:+.2f})",
                )
            self.teller.console.print(table)
            _require(comparisons["current"]["low"] > 0, "not better on the new world")
            margin = self.config.gate.margin
            _require(comparisons["test"]["low"] > -margin, "worse on the old world")

    def _set_captures_aside(self) -> Path | None:
        captures = self.stack.captures
        if not captures.exists():
            return None
        aside = captures.with_name(f"{captures.name}.{datetime.now():%Y%m%d-%H%M%S}")
        return captures.rename(aside)

    def _follow(self, deployment: str) -> None:
        self._follow_run(self.observer.start(deployment), self.teller.stage)

    def _follow_run(self, run: "FlowRun", on_stage: Callable[["Stage"], None]) -> "FlowRun":
        from infra.observer import FlowRunFailed

        with self.teller.working(f"{run.name} on the worker") as bar:
            task = bar.task_ids[0]
            try:
                return self.observer.follow(
                    run, on_stage, lambda share: bar.update(task, total=1.0, completed=share)
                )
            except FlowRunFailed as error:
                page = f"{self.stack.prefect_url}/runs/flow-run/{run.id}"
                raise StoryError(f"flow run {run.name}: {error}\n{page}") from error

    def _monitor(self) -> tuple[bool, str]:
        ended = self._follow_run(self.observer.start("monitor/demo-monitor"), self.teller.stage)
        assert ended.state is not None
        _require(ended.state.name in ("Drift", "NoDrift"), f"the monitor says {ended.state.name}")
        return ended.state.name == "Drift", str(ended.state.message)

    def _send(self, world: str, count: int, *, correcting: bool) -> list[Answer]:
        with self.teller.working(f"{count} requests from the {world}"):
            indices = range(self.requests_sent, self.requests_sent + count)
            self.requests_sent += count
            return send(self.stack.service_url, world, APP_SEED, indices, correcting=correcting)

    def _await_version(self, traffic: Traffic, version: str) -> None:
        deadline = time.monotonic() + SWAP_SECONDS
        with self.teller.working(f"the service takes up v{version}"):
            while version not in traffic.versions:
                self.stack.check()
                _require(time.monotonic() < deadline, f"v{version} does not answer")
                time.sleep(0.2)

    def _champion(self) -> VersionRef:
        champion = history.champion(self.config.name)
        _require(champion is not None, "no version was promoted; see the gate's artifact")
        assert champion is not None
        return champion

    def _say_verdict(self, version: VersionRef) -> None:
        for line in lineage.judged(version):
            self.teller.say(escape(line))

    def _show(self, answer: Answer, before: str | None = None) -> None:
        lines = [f"[bold]v{answer.version}[/] says: [bold]{escape(answer.caption)}[/]"]
        if before is not None:
            lines.insert(0, f"v{self.first.version} said: {escape(before)}")
        lines += ["", "people say:", *(f"  {text}" for text in answer.scene.references)]
        self.teller.show(answer.scene.image, lines)


def _cider(answers: list[Answer]) -> float:
    captions = [answer.caption for answer in answers]
    return score(captions, [list(answer.scene.references) for answer in answers]).corpus["cider"]


def _require(happened: bool, otherwise: str) -> None:
    if not happened:
        raise StoryError(otherwise)


def _epilogue(teller: Teller, total_seconds: float) -> None:
    table = Table("stage of the story", "seconds")
    for title, seconds in teller.chapters:
        table.add_row(title, f"{seconds:.0f}")
    table.add_row("[bold]all of it[/]", f"[bold]{total_seconds:.0f}[/]")
    teller.console.print("\n", table)
    teller.console.print(
        "Every process is ended. [bold]make up[/] starts the servers again, to look around: "
        "the runs and their artifacts in Prefect, the models in MLflow, the champion over HTTP."
    )


if __name__ == "__main__":
    sys.exit(main())
