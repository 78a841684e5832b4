"""Finetune: the GPU's part of the loop as a flow of its own."""

from prefect import flow

from configs.schema import Config
from tasks.finetune import finetune
from tasks.refs import ModelRef, PreparedRef, VersionRef


@flow(name="finetune")
def finetune_model(scenario: Config, data: PreparedRef, champion: VersionRef | None) -> ModelRef:
    """Trains on `data`; with `model.base: champion`, from the champion's weights."""
    base = champion.model if champion and scenario.model.base == "champion" else None
    return finetune(
        scenario.name,
        data,
        scenario.model,
        scenario.finetune,
        scenario.evaluate,
        base,
        scenario.seed,
    )
