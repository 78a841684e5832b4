"""The real stages under Prefect: what runs again and what does not, what a person gets to see."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from prefect import flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL

from bentos import packaging
from bentos.captioner.capture import CapturedRequest, CaptureStore
from bentos.captioner.engine import Engine
from bentos.captioner.generation import Generation
from bentos.packaging import SmokeFailed
from configs.schema import EvaluateConfig
from configs.settings import settings
from flows.monitor import monitor
from flows.override import override
from flows.rollback import rollback
from flows.train import train
from infra.visitors import png
from tasks import feedback
from tasks.approval import Answer, give, waiting
from tasks.data.folders import sha256
from tasks.data.prepared import PreparedDataset
from tasks.data.scenes import scene
from tasks.evaluate import evaluate_champion
from tasks.refs import EvaluationRef, PreparedRef, VersionRef
from tasks.registry import history, lineage, runs, versions

DEADLINE_SECONDS = 30
CACHED_STAGES = ("ingest", "validate", "prepare", "finetune", "evaluate")
SCENARIO = {
    "name": "shapes",
    "seed": 3,
    "data": {
        "source": {"format": "scenes", "count": 90, "seed": 5},
        "splits": {"val": 0.05, "test": 0.4},
    },
    "model": {"tiny": {"vision_width": 32, "text_width": 32, "heads": 2, "vocab_size": 120}},
    "finetune": {"max_steps": 6, "batch_size": 8, "log_every_steps": 2},
    "evaluate": {"gallery_images": 3, "max_new_tokens": 6},
    "gate": {"floors": {"cider": 1000.0}},
    "monitor": {"backend": "native", "min_requests": 30, "window_requests": 40},
    "retrain": {"min_labels": 2},
}


@dataclass
class Seen:
    """A flow run as its API tells it: stage -> names of its states, artifact key -> content."""

    state: State[Any]
    stages: dict[str, list[str]] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)

    def ran(self) -> set[str]:
        """The cached stages that did their work anew."""
        return {name for name in CACHED_STAGES if "Completed" in self.stages.get(name, [])}


@pytest.fixture(scope="module")
def config(module_var: Path, prefect_server: None) -> str:
    path = module_var / "shapes.yaml"
    path.write_text(yaml.safe_dump(SCENARIO))
    return str(path)


@pytest.fixture(scope="module")
def run(config: str) -> Callable[..., Seen]:
    def train_with(*overrides: str) -> Seen:
        return seen(train(config, list(overrides), return_state=True))

    return train_with


@pytest.fixture(scope="module")
def first(run: Callable[..., Seen]) -> Seen:
    return run()


@pytest.fixture(scope="module")
def champion(first: Seen) -> VersionRef:
    """The first challenger, put in charge over the gate's head."""
    version = versions.by_number("shapes", 1)
    history.promote(version, over=None, why="approved: the demo needs one", by="tests")
    return version


def seen(state: State[Any]) -> Seen:
    """What the server has of a flow run and of the flows inside it, once it has all of it."""
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run_id]}))
        inner = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(parent_flow_run_id={"any_": [run_id]})
        )
        runs = [run_id, *(each.id for each in inner)]
        wrappers = {each.parent_task_run_id for each in inner}
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:  # task runs reach the server as events, a moment later
            tasks = client.read_task_runs(
                flow_run_filter=FlowRunFilter(id={"any_": runs}),
                task_run_filter=TaskRunFilter(),
            )
            if all(t.state and t.state.is_final() for t in tasks) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id={"any_": runs})
        )
    told = Seen(state)
    for task in tasks:
        if task.id not in wrappers:
            told.stages.setdefault(task.name.rsplit("-", 1)[0], []).append(str(task.state_name))
    told.artifacts = {str(each.key): str(each.data) for each in artifacts}
    return told


@contextmanager
def approving() -> Iterator[None]:
    """A person who approves the first that waits; a model of six steps says the same of all."""

    def approve() -> None:
        while not waiting("shapes"):
            time.sleep(0.2)
        give(Answer(approve=True, name="Ada", comment="seen and liked"), "shapes", None)

    answering = threading.Thread(target=approve, daemon=True)
    answering.start()
    yield
    answering.join(DEADLINE_SECONDS)


def test_the_first_run_does_the_work_and_is_rejected_with_a_reason(first):
    assert first.ran() == set(CACHED_STAGES)
    assert first.state.is_completed()
    verdict = first.state.result()
    assert verdict.decision == "reject"
    assert any("cider" in reason and "1000.00" in reason for reason in verdict.reasons)
    assert "package" not in first.stages
    assert "promote" not in first.stages


def test_every_stage_leaves_something_to_look_at(first):
    told = {
        "ingest": ("| images | 90 |", "scenes"),
        "validate": ("| images | 90 | 90 | 0 |", "data:image/"),
        "prepare": (".dir", "| train |", "| test |"),
        "finetune": ("model digest", "val_cider"),
        "evaluate": ("| test | ", " to ", "distinct-1"),
        "gallery": ("| test | ", "### Worst", "](data:image/jpeg", "gallery/alone.html"),
        "register": ("shapes v1", "by hand", "CIDEr on test"),
        "gate": ("## reject", "below the floor 1000.00"),
    }
    for key, parts in told.items():
        for part in parts:
            assert part in first.artifacts[key], (key, part)
    for key in ("finetune-progress", "evaluate-progress"):
        assert float(first.artifacts[key]) == 100.0


def test_the_gallery_s_page_lies_with_the_model_s_run(first, tmp_path):
    run_id = versions.by_number("shapes", 1).model.run_id
    path = runs.client().download_artifacts(run_id, "gallery/alone.html", str(tmp_path))
    assert "There is no champion to compare it with." in Path(path).read_text(encoding="utf-8")


def test_the_registered_version_tells_the_verdict_and_is_challenger_no_more(first):
    version = versions.by_number("shapes", 1)
    assert "below the floor" in lineage.judged(version)[0]
    assert versions.aliases("shapes") == {}


def test_an_unchanged_second_run_does_no_work(first, run):
    again = run()
    assert {name: again.stages[name] for name in CACHED_STAGES} == {
        name: ["Cached"] for name in CACHED_STAGES
    }
    assert again.stages["register"] == again.stages["gate"] == ["Completed"]


def test_another_training_reruns_it_and_what_follows_and_nothing_before(first, run):
    assert run("finetune.max_steps=5").ran() == {"finetune", "evaluate"}


def test_another_evaluation_reruns_nothing_else(first, run):
    assert run("evaluate.gallery_images=6").ran() == {"evaluate"}


def test_another_gate_reruns_no_cached_stage(first, run):
    assert run("gate.floors={cider: 999.0}").ran() == set()


def test_a_prepared_dataset_that_was_deleted_is_made_again_and_nothing_after_it(
    first, run, module_var
):
    (folder,) = (module_var / "datasets" / "prepared").iterdir()
    before = {path.name: sha256(path.read_bytes()) for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert run().ran() == {"prepare"}
    assert {path.name: sha256(path.read_bytes()) for path in folder.iterdir()} == before


def test_too_little_feedback_is_an_outcome_not_a_failure(run, monkeypatch, tmp_path):
    monkeypatch.setenv("CAPTIONLOOP_CAPTURES", str(tmp_path))
    outcome = run("data.use_feedback=true")
    assert outcome.state.is_completed()
    assert outcome.state.name == "LabelsWanted"
    assert "at least 2 are needed" in str(outcome.state.message)
    assert "| enough to retrain on | no |" in outcome.artifacts["labels"]
    assert outcome.ran() == set()


def test_rejected_data_fails_the_run_by_the_name_of_the_rule(run):
    outcome = run("data.checks.min_images=500")
    assert outcome.state.is_failed()
    assert "min_images: 90 of 90 images are usable" in str(outcome.state.message)
    assert outcome.stages["validate"] == ["Failed"]
    assert "prepare" not in outcome.stages
    assert "| images | 90 | 90 | 0 |" in outcome.artifacts["validate"]


def test_a_model_without_a_champion_is_not_watched(config):
    outcome = monitor(config, ["name=nobody"], return_state=True)
    assert outcome.is_completed()
    assert outcome.name == "NoChampion"


def test_a_bento_that_fails_its_smoke_run_promotes_nothing(run):
    with approving():
        failed = run("gate.floors={cider: 0.0}", "package.smoke_timeout_seconds=0.01")
    assert failed.state.is_failed()
    assert "SmokeFailed" in str(failed.state.message)
    assert failed.stages["gate"] == ["Completed"]
    assert failed.stages["package"] == ["Failed"]
    assert "promote" not in failed.stages
    assert versions.CHAMPION not in versions.aliases("shapes")


def capture(champion: VersionRef, world: str, count: int, *, images: bool = False) -> None:
    """What the service would have stored of requests that show a world."""
    engine = Engine.load(versions.fetch(champion.model))
    store = CaptureStore(settings().captures_url)
    for index in range(count):
        image = scene(11, index, world).image
        pixels = np.asarray(image)
        store.put(
            CapturedRequest(
                request_id=sha256(f"{world}{index}".encode())[:32],
                time=time.time(),
                model_version=str(champion.version),
                caption="a shape",
                log_probability=-1.0,
                embedding=engine.run(pixels[np.newaxis], Generation(1))[1][0],
                width=72,
                height=72,
                brightness=float(pixels.mean() / 255),
                image=png(image) if images else None,
            )
        )
    store.close()
    assert store.dropped == 0


def drift_events(run_id: object) -> list[dict[str, Any]]:
    """The drift events that a flow run emitted, as the server has them."""
    body = {
        "filter": {
            "event": {"name": ["captionloop.drift.detected"]},
            "related": {"id": [f"prefect.flow-run.{run_id}"]},
        }
    }
    answer = httpx.post(f"{PREFECT_API_URL.value()}/events/filter", json=body)
    answer.raise_for_status()
    return list(answer.json()["events"])


def test_a_champion_is_watched_and_drift_is_announced_when_the_world_moves(champion, config):
    quiet = seen(monitor(config, return_state=True))
    assert (quiet.state.name, quiet.state.message) == (
        "NoDrift",
        "not enough requests (0 of 30)",
    )

    capture(champion, "day", 40)
    same = seen(monitor(config, return_state=True))
    assert same.state.name == "NoDrift"
    assert "no drift: p = " in str(same.state.message)
    assert "# No drift" in same.artifacts["drift"]
    assert same.stages == {"current_champion": ["Completed"], "detect_drift": ["Completed"]}

    capture(champion, "night", 40)
    moved = seen(monitor(config, return_state=True))
    assert moved.state.is_completed()
    assert moved.state.name == "Drift"
    assert moved.stages["announce_drift"] == ["Completed"]
    assert "# Drift" in moved.artifacts["drift"]

    run_id = moved.state.state_details.flow_run_id
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (events := drift_events(run_id)) and time.monotonic() < deadline:
        time.sleep(0.1)
    (event,) = events
    assert event["resource"]["prefect.resource.id"] == "captionloop.model.shapes"
    assert event["payload"]["champion_version"] == "1"
    assert event["payload"]["reason"] == moved.state.message
    assert event["payload"]["p_value"] <= 0.01
    assert drift_events(same.state.state_details.flow_run_id) == []


def test_a_model_that_is_champion_already_is_not_judged_again(champion, run):
    again = run()
    assert again.state.is_completed()
    assert (again.state.name, again.state.message) == (
        "Unchanged",
        "shapes v1 is this model already",
    )
    assert "register" not in again.stages


@pytest.mark.e2e
def test_a_rollback_asks_the_former_champion_before_it_serves_and_tells_who_and_why(champion):
    second = versions.by_number("shapes", 2)
    history.promote(second, over=champion, why="approved", by="tests")
    told = seen(rollback("shapes", by="ann", comment="it lies", return_state=True))
    assert told.state.result() == champion
    assert versions.aliases("shapes")[versions.CHAMPION] == 1
    assert versions.aliases("shapes")[versions.PREVIOUS] == 2
    assert [(e.why, e.by) for e in history.settled("shapes")][2:] == [
        ("rolled back: it lies", "ann")
    ]
    assert "rolled back: it lies (ann)" in told.artifacts["promote"]
    assert packaging.stored(lineage.bento(champion))


@pytest.mark.e2e
def test_a_rollback_to_what_says_something_else_by_now_leaves_everything_as_it_was(champion):
    import bentoml  # reads BENTOML_HOME, which the first package sets

    second = versions.by_number("shapes", 2)
    history.promote(second, over=champion, why="approved", by="tests")
    tag = lineage.bento(champion)
    (model,) = bentoml.bentos.get(tag).info.all_models
    golden = Path(bentoml.models.get(model.tag).path) / "golden" / "golden.json"
    honest = golden.read_text()
    entries = json.loads(honest)
    entries[-1]["caption"] = "what nobody said"
    golden.write_text(json.dumps(entries))

    def everything() -> tuple[object, ...]:
        return history.read("shapes"), versions.aliases("shapes"), versions.tags("shapes", 1)

    before = everything()
    with pytest.raises(SmokeFailed, match="expected 'what nobody said'"):
        rollback("shapes", 1)
    assert before == (
        history.read("shapes"),
        versions.aliases("shapes"),
        versions.tags("shapes", 1),
    )

    bentoml.bentos.delete(tag)  # it is made anew from the registry's files, which are honest
    assert rollback("shapes", 1) == champion
    assert history.champion("shapes") == champion
    assert packaging.stored(lineage.bento(champion))
    assert lineage.bento(champion) != tag


def test_what_a_person_approves_is_packaged_and_serves(champion, run):
    with approving():
        outcome = run("finetune.max_steps=5", "gate.floors={}", "gate.min_images=1000")
    verdict = outcome.state.result()
    assert (verdict.decision, verdict.by) == ("promote", "Ada")
    serving = history.champion("shapes")
    assert versions.aliases("shapes")[versions.CHAMPION] == serving.version
    assert serving.version > champion.version
    assert lineage.bento(serving) is not None
    assert history.read("shapes")[-1].by == "Ada"
    history.promote(champion, over=serving, why="back again", by="tests")


def test_an_override_puts_what_the_gate_rejected_in_charge_and_says_who_and_why(champion):
    rejected = versions.by_number("shapes", 2)
    with pytest.raises(ValueError, match="say who overrides"):
        override("shapes", 2, by="Ada", comment=" ")
    assert override("shapes", 2, by="Ada", comment="the customer insists") == rejected
    assert versions.aliases("shapes")[versions.CHAMPION] == rejected.version
    event = history.read("shapes")[-1]
    assert (event.version, event.over, event.by) == (2, champion.version, "Ada")
    assert event.why == "the gate overridden: the customer insists"
    tags = versions.tags("shapes", 2)
    assert tags["verdict"] == "reject"
    assert "the customer insists" in tags["champion_periods"]
    history.promote(champion, over=rejected, why="back again", by="tests")


def test_a_champion_of_another_image_size_leaves_the_verdict_to_a_person(champion, run):
    outcome = run("data.image_size=48", "gate.floors={}", "gate.approval_hours=0.0003")
    assert outcome.state.is_completed()
    verdict = outcome.state.result()
    assert (verdict.decision, verdict.by) == ("reject", "nobody")
    assert versions.aliases("shapes")[versions.CHAMPION] == champion.version
    assert outcome.stages["evaluate"] == ["Completed"]  # the candidate's alone


@pytest.mark.parametrize("fault", ["gone", "without files", "without weights"])
def test_a_champion_that_can_not_be_loaded_has_no_scores(champion, module_var, tmp_path, fault):
    folder = shutil.copytree(versions.fetch(champion.model), tmp_path / "model")
    update = {"uri": str(folder), "digest": fault}
    if fault == "gone":
        update |= {"uri": "nowhere", "model_id": f"m-{'0' * 32}"}
    for path in folder.glob("config.json" if fault == "without files" else "*.safetensors"):
        path.unlink()
    lost = champion.model_copy(update={"model": champion.model.model_copy(update=update)})
    (prepared,) = (
        path
        for path in (module_var / "datasets" / "prepared").iterdir()
        if PreparedDataset.open(path).image_size == 72
    )
    data = PreparedRef(
        uri=str(prepared),
        digest=prepared.name,
        num_images=90,
        num_captions=450,
        rows_dvc_md5="1.dir",
        report="",
        dvc_md5="0.dir",
        split_sizes={},
    )

    @flow
    def alone() -> EvaluationRef | None:
        return evaluate_champion(lost, data, EvaluateConfig())

    assert alone() is None


def test_too_few_labels_make_a_batch_whose_answers_make_the_next_run_train(
    run, champion, module_var, monkeypatch, tmp_path
):
    monkeypatch.setenv("CAPTIONLOOP_CAPTURES", str(tmp_path))
    capture(champion, "night", 4, images=True)
    asked = run("data.use_feedback=true")
    assert asked.state.name == "LabelsWanted"
    assert "labelling batch of 4 pictures" in asked.artifacts["labels"]
    [batch] = (module_var / "labelling").iterdir()
    lines = [json.loads(line) for line in (batch / "metadata.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["caption"] = scene(11, number, "night").references[0]
    (batch / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert feedback.main(["import", str(batch)]) == 0

    trained = run("data.use_feedback=true")
    assert trained.ran() == set(CACHED_STAGES)
    assert "| newly corrected requests | 4 |" in trained.artifacts["labels"]
    assert "DVC md5" in trained.artifacts["labels"]
    assert '"format":"feedback"' in trained.artifacts["ingest"]
