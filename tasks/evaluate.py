"""Evaluate: one model's captions of the test images, by the engine that serves, scored."""

from prefect import task

from configs.schema import EvaluateConfig
from configs.settings import settings
from tasks.artifacts import progress, publish
from tasks.caching import BY_CONTENT
from tasks.data.prepared import PreparedDataset
from tasks.metrics import captioning
from tasks.refs import EvaluationRef, ModelRef, PreparedRef
from tasks.registry import versions


@task(cache_policy=BY_CONTENT, persist_result=True)
def evaluate(model: ModelRef, data: PreparedRef, config: EvaluateConfig) -> EvaluationRef:
    """Scores on the `test` slice and, with feedback in the data, on `current`."""
    from bentos.captioner.engine import Engine

    dataset = PreparedDataset.open(data.path)
    engine = Engine.load(versions.fetch(model))
    move = progress("evaluate-progress", "Captioning the test images")
    result = captioning.evaluate(engine, dataset, config, move)
    told = f"Scores and captions of model {model.digest[:8]}"
    publish("evaluate", result.markdown(config.gallery_images), told)
    return result.save(settings().var / "evaluations", config.gallery_images)
