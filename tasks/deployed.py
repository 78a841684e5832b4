"""Finetune elsewhere: a run of a deployment whose workers have GPUs, and the model it made."""

import json
import time
from uuid import UUID

from prefect import get_client, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import ArtifactSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from configs.schema import Config
from tasks.refs import ModelRef, PreparedRef, VersionRef

_MADE = "finetuned-model"
_POLL_SECONDS = 2.0


class DeploymentFailed(RuntimeError):
    """`finetune.deployment` is not there, or its run ended without a model."""


def announce(model: ModelRef) -> None:
    """Says on the flow run what it made: results don't leave a worker's disk, artifacts do."""
    create_table_artifact(
        key=_MADE, table=[model.model_dump(mode="json")], description="The model that was made"
    )


def finetune_by_deployment(
    scenario: Config, data: PreparedRef, champion: VersionRef | None
) -> ModelRef:
    """Runs `finetune.deployment` to its end; only refs travel. Ended early, it ends that run too.

    Raises DeploymentFailed.
    """
    name = str(scenario.finetune.deployment)
    parameters = {
        "scenario": scenario.model_dump(mode="json"),
        "data": data.model_dump(mode="json"),
        "champion": champion and champion.model_dump(mode="json"),
    }
    try:
        run = run_deployment(name, parameters=parameters, timeout=0)
    except ObjectNotFound as error:
        raise DeploymentFailed(
            f"finetune.deployment: there is no deployment {name!r}; run `prefect deploy`, or leave "
            "the key out to train in this process."
        ) from error
    assert isinstance(run, FlowRun)
    get_run_logger().info("Fine-tuning by %s, flow run %s", name, run.name)
    run = _waited_for(run)
    if run.state is None or not run.state.is_completed():
        why = run.state.message if run.state else "it has no state"
        raise DeploymentFailed(f"the run {run.name} of {name} ended {run.state_name}: {why}")
    made = _made_by(run.id)
    if made is None:
        raise DeploymentFailed(
            f"finetune.deployment: the run {run.name} of {name} made no model; name a deployment "
            "of flows.finetune.finetune_model."
        )
    return made


def _waited_for(run: FlowRun) -> FlowRun:
    with get_client(sync_client=True) as client:
        try:
            while run.state is None or not run.state.is_final():
                time.sleep(_POLL_SECONDS)
                run = client.read_flow_run(run.id)
        except BaseException:
            client.set_flow_run_state(run.id, Cancelling())
            raise
    return run


def _made_by(flow_run_id: UUID) -> ModelRef | None:
    wanted = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]),
        key=ArtifactFilterKey(any_=[_MADE]),
    )
    newest = ArtifactSort.CREATED_DESC  # a run that was retried may have said it before
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted, sort=newest, limit=1)
    return ModelRef.model_validate(json.loads(str(found[0].data))[0]) if found else None
