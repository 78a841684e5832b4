"""Starts and follows flow runs through the Prefect API, as a person does in the UI."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import ArtifactSort
from prefect.states import Crashed, State
from prefect.types import DateTime

from tasks.spread import SHARD

POLL_SECONDS = 0.5
LIVING = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
]


class FlowRunFailed(RuntimeError):
    """A flow run did not complete, or did not start in time."""


@dataclass(frozen=True)
class Stage:
    """A stage that ended."""

    name: str
    cached: bool
    seconds: float


class Observer:
    """A client of one Prefect server. `patience` is called at each poll and may raise."""

    def __init__(self, server_url: str, patience: Callable[[], None]) -> None:
        self._client: SyncPrefectClient = get_client(
            httpx_settings={"base_url": f"{server_url}/api"}, sync_client=True
        )
        self._patience = patience

    def close_unfinished_runs(self) -> int:
        """Ends the runs that a killed stack left, so that none is taken up or holds a slot."""
        unfinished = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=LIVING)),
            expected_start_time=FlowRunFilterExpectedStartTime(before_=DateTime.now(UTC)),
        )
        closed = 0
        while runs := self._client.read_flow_runs(flow_run_filter=unfinished):
            for run in runs:
                state: State[None] = Crashed(message="The stack that ran this was killed.")
                self._client.set_flow_run_state(run.id, state, force=True)
            closed += len(runs)
        return closed

    def pause_schedules(self) -> None:
        """Stops the schedules of all deployments until they are deployed again."""
        for deployment in self._client.read_deployments():
            for schedule in deployment.schedules:
                self._client.update_deployment_schedule(deployment.id, schedule.id, active=False)

    def start(self, deployment: str) -> FlowRun:
        """Starts a run of `flow/deployment`; a worker takes it up."""
        found = self._client.read_deployment_by_name(deployment)
        return self._client.create_flow_run_from_deployment(found.id)

    def await_run(self, deployment: str, since: datetime, timeout_seconds: float) -> FlowRun:
        """The run of a deployment that something else started after `since`."""
        named = DeploymentFilter(name=DeploymentFilterName(any_=[deployment]))
        recent = FlowRunFilter(
            expected_start_time=FlowRunFilterExpectedStartTime(after_=DateTime.instance(since))
        )
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            runs = self._client.read_flow_runs(deployment_filter=named, flow_run_filter=recent)
            if runs:
                return runs[0]
            self._patience()
            time.sleep(POLL_SECONDS)
        raise FlowRunFailed(f"nothing started {deployment} within {timeout_seconds:.0f} s")

    def follow(
        self,
        run: FlowRun,
        on_stage: Callable[[Stage], None],
        on_progress: Callable[[float], None],
    ) -> FlowRun:
        """Reports the stages of a run and its progress until it ends.

        Raises: FlowRunFailed with the run's message, when it didn't complete.
        """
        reported: set[UUID] = set()
        while True:
            current = self._client.read_flow_run(run.id)
            for task_id, stage in self._ended_stages(run.id):
                if task_id not in reported:
                    reported.add(task_id)
                    on_stage(stage)
            if current.state is not None and current.state.is_final():
                if not current.state.is_completed():
                    raise FlowRunFailed(f"{current.state.name}: {current.state.message}")
                return current
            if (share := self._progress(run.id)) is not None:
                on_progress(share)
            self._patience()
            time.sleep(POLL_SECONDS)

    def _ended_stages(self, run_id: UUID) -> Iterator[tuple[UUID, Stage]]:
        tasks = self._client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=self._family(run_id)))
        )
        for task in sorted(tasks, key=lambda t: t.end_time or datetime.max.replace(tzinfo=UTC)):
            state = task.state
            if state is None or not state.is_final() or SHARD in task.tags:
                continue
            if state.state_details.child_flow_run_id:
                continue
            name = task.name.rsplit("-", 1)[0]
            yield task.id, Stage(name, state.name == "Cached", task.total_run_time.total_seconds())

    def _progress(self, run_id: UUID) -> float | None:
        wanted = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=self._family(run_id)),
            type=ArtifactFilterType(any_=["progress"]),
        )
        newest = self._client.read_artifacts(
            artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, limit=1
        )
        return float(str(newest[0].data)) / 100 if newest else None

    def _family(self, run_id: UUID) -> list[UUID]:
        children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]))
        return [run_id, *(run.id for run in self._client.read_flow_runs(flow_run_filter=children))]
