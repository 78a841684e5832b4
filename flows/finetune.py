"""Finetune: the GPU's part of the loop as a flow of its own."""

from pathlib import Path

from prefect import flow

from configs.schema import Config
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
    return finetune(
        scenario.name,
        data,
        scenario.model,
        scenario.finetune,
        scenario.evaluate.generation,
        base,
        scenario.seed,
    )
