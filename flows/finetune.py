"""Finetune: the GPU's part of the loop as a flow of its own, here or on another work pool."""

from pathlib import Path

from prefect import flow

from configs.schema import Config
from tasks.deployed import announce, finetune_by_deployment
from tasks.finetune import finetune
from tasks.promote import require_champion
from tasks.refs import ModelRef, PreparedRef, VersionRef


@flow(name="finetune")
def finetune_model(scenario: Config, data: PreparedRef, champion: VersionRef | None) -> ModelRef:
    """Trains on `data`; with `model.base: champion`, from the champion's weights."""
    base: ModelRef | Path | None = None
    if scenario.model.base == "champion":
        base = require_champion(scenario.name, champion).model
    elif Path(scenario.model.base).is_dir():
        base = Path(scenario.model.base)  # a Path goes into the cache key by its content
    model = finetune(
        scenario.name,
        data,
        scenario.model,
        scenario.finetune,
        scenario.evaluate.generation,
        base,
        scenario.seed,
    )
    announce(model)
    return model


def finetune_anywhere(scenario: Config, data: PreparedRef, champion: VersionRef | None) -> ModelRef:
    """`finetune_model` in this process, or by `finetune.deployment` where its workers are."""
    if scenario.finetune.deployment is None:
        return finetune_model(scenario, data, champion)
    return finetune_by_deployment(scenario, data, champion)
