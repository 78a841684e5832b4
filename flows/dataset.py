"""Dataset: from sources to what a model is trained on, its shards on threads or on Dask."""

from prefect import flow

from configs.loader import from_command_line
from configs.schema import Config, FeedbackSource
from tasks.ingest import contents, ingest
from tasks.prepare import prepare
from tasks.refs import PreparedRef
from tasks.spread import task_runner
from tasks.validate import validate


@flow
def make_dataset(scenario: Config, feedback: FeedbackSource | None) -> PreparedRef:
    """Ingest, validate and prepare; corrected requests, if any, come last."""
    data = scenario.data
    sources = [*data.sources, *([feedback] if feedback else [])]
    raw = ingest(sources, contents(sources))
    validated = validate(raw, data.checks, data.splits, scenario.seed, scenario.name)
    return prepare(validated, data.image_size)


def dataset(scenario: Config, feedback: FeedbackSource | None = None) -> PreparedRef:
    """`make_dataset` on the task runner that the config chooses."""
    runner = task_runner(scenario.data.dask_address)
    return make_dataset.with_options(task_runner=runner)(scenario, feedback)


if __name__ == "__main__":
    dataset(from_command_line(__doc__)[2])
