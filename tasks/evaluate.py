"""Evaluate: one model's captions of the test images, by the engine that serves, scored."""

from prefect import get_run_logger, task

from configs.schema import EvaluateConfig
from configs.settings import settings
from tasks.artifacts import progress, publish
from tasks.caching import BY_CONTENT
from tasks.data import versioning
from tasks.data.prepared import PreparedDataset
from tasks.metrics import captioning, report
from tasks.refs import EvaluationRef, ModelRef, PreparedRef, VersionRef
from tasks.registry import versions


@task(cache_policy=BY_CONTENT, persist_result=True)
def evaluate(model: ModelRef, data: PreparedRef, config: EvaluateConfig) -> EvaluationRef:
    """Scores on `test`, `golden` and `current`, as far as the data has them, and on the config's
    slices."""
    dataset = PreparedDataset.open(versioning.fetch(data))
    move = progress("evaluate-progress", "Captioning the test images")
    result = captioning.evaluate(versions.fetch(model), dataset, config, move)
    told = f"Scores of model {model.digest[:8]}"
    publish("evaluate", report.markdown(result.evaluation, config), told)
    return result.save(settings().var / "evaluations")


def evaluate_champion(
    champion: VersionRef | None, data: PreparedRef, config: EvaluateConfig
) -> EvaluationRef | None:
    """The champion's scores on this data; None where it can't be run on it, as the gate expects."""
    from mlflow.exceptions import MlflowException

    from bentos.captioner.engine import BadModelFolder, WrongImageSize

    if champion is None:
        return None
    try:
        _check_size(champion.model, data)
        return evaluate(champion.model, data, config)
    except (BadModelFolder, WrongImageSize, versions.NoSuchVersion) as error:
        why = str(error)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        why = error.message
    told = "Champion %s v%d can't be evaluated on this data: %s"
    get_run_logger().warning(told, champion.name, champion.version, why)
    return None


def _check_size(model: ModelRef, data: PreparedRef) -> None:
    """Before the task starts, so that a champion of another size leaves no failed task behind.

    Raises: WrongImageSize, BadModelFolder.
    """
    from bentos.captioner.engine import WrongImageSize, image_size_of

    needed = image_size_of(versions.fetch(model))
    given = PreparedDataset.open(versioning.fetch(data)).image_size
    if needed != given:
        raise WrongImageSize(f"it sees {needed} pixels a side, data.image_size is {given}.")
