"""Gallery: what the candidate says beside the champion, with the run in MLflow and in Prefect."""

from prefect import task

from configs.schema import EvaluateConfig
from tasks.artifacts import publish
from tasks.data import versioning
from tasks.data.prepared import PreparedDataset
from tasks.gate import readable
from tasks.metrics.gallery import cards, markdown, page
from tasks.refs import EvaluationRef, ModelRef, PreparedRef, VersionRef
from tasks.registry import runs


@task
def show_gallery(
    model: ModelRef,
    data: PreparedRef,
    scores: EvaluationRef,
    champion: VersionRef | None,
    champion_scores: EvaluationRef | None,
    config: EvaluateConfig,
) -> None:
    """The page goes to the model's MLflow run, its summary to Prefect."""
    candidate, against = readable(scores), readable(champion_scores)
    if candidate is None:
        return
    names = {"model": model.digest, "dataset": data.digest}
    if champion:
        names["champion"] = str(champion)
    dataset = PreparedDataset.open(versioning.fetch(data))
    gallery = cards.collect(dataset, candidate, against, config.gallery_images, names)
    file = f"gallery/against-v{champion.version}.html" if champion else "gallery/alone.html"
    runs.client().log_text(model.run_id, page.render(gallery, config), file)
    told = f"Captions of model {model.digest[:8]}"
    text = markdown.markdown(gallery, config, runs.link(model.run_id, file))
    publish("gallery", text, told)
