"""The model card of a version: what it is, what it was made of, how good it is, where it may fail.

All of it is read from the registry, so that any machine can write it.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.metrics.evaluation import FILE, Evaluation
from tasks.refs import VersionRef
from tasks.registry import lineage, runs, versions

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData
    from mlflow.entities import Run

_TEMPLATE = Path(__file__).with_name("card.md.j2")
_TINY = 20_000_000  # bytes; whatever is so small knows no more than a toy world
# Of all that a run has, what tells how it was trained.
_PARAMETERS = (
    "model.base",
    "finetune.method",
    "finetune.max_steps",
    "finetune.epochs",
    "finetune.batch_size",
    "finetune.learning_rate",
    "finetune.schedule",
    "finetune.precision",
    "finetune.feedback_share",
    "seed",
)


def write(version: VersionRef) -> str:
    """Stores the card with the version's run, over the one before; returns it."""
    text = render(version)
    runs.client().log_text(version.model.run_id, text, lineage.card_file(version))
    return text


def render(version: VersionRef) -> str:
    """The card as Markdown, with the metadata that model hubs read (YAML) in front."""
    import jinja2

    tags = versions.tags(version.name, version.version)
    run = runs.client().get_run(version.model.run_id)
    evaluation = _evaluation(version)
    config = yaml.safe_load(_artifact(version, "config.yaml") or "") or {}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    return environment.get_template(_TEMPLATE.name).render(
        card_data=_metadata(version, evaluation, run).to_yaml(),
        version=version,
        summary=_summary(version, run),
        bento=tags.get("bento"),
        limits=list(_limits(evaluation)),
        data={name: _cell(value) for name, value in _data(version, tags, config).items()},
        training={name: _cell(value) for name, value in _training(run, evaluation).items()},
        scores=list(_scores(evaluation)),
        comparisons=json.loads(_artifact(version, lineage.comparisons_file(version)) or "{}"),
        verdict=tags.get("verdict", "not judged yet"),
        reasons=tags.get("reasons", "").splitlines(),
        periods=tags.get("champion_periods", "").splitlines(),
        lineage={label: _cell(tags[key]) for key, label in lineage.LABELS.items() if key in tags},
    )


def _metadata(version: VersionRef, evaluation: Evaluation | None, run: "Run") -> "ModelCardData":
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-to-text",
            dataset_type=version.name,
            dataset_name=version.name,
            dataset_split=name,
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for name, part in (evaluation.slices.items() if evaluation else ())
        for metric, value in part.corpus.items()
    ]
    base = run.data.params.get("model.base", "scratch")
    return ModelCardData(
        model_name=str(version) if results else None,
        eval_results=results or None,
        base_model=base if "/" in base else None,
        library_name="transformers",
        pipeline_tag="image-to-text",
        tags=["image-captioning", "captionloop"],
    )


def _summary(version: VersionRef, run: "Run") -> str:
    base = run.data.params.get("model.base", "an unknown base")
    how = {"scratch": "trained from random weights", "champion": "trained on from the champion"}
    told = how.get(base, f"fine-tuned from {base}")
    return f"An image captioner, {told}; weights as safetensors, digest `{version.model.digest}`."


def _limits(evaluation: Evaluation | None) -> Iterator[str]:
    yield "It says what its training captions say, in their language and with their biases."
    yield (
        "It was measured on pictures of the same sources alone; on others nothing is known, and "
        "that it is sure of a caption does not make it true."
    )
    yield "Not for decisions about people, nor where a wrong caption does harm."
    if evaluation:
        images = {name: len(part.image_ids) for name, part in evaluation.slices.items()}
        told = ", ".join(f"{count} of {name}" for name, count in images.items())
        yield f"The scores below rest on this many images: {told}."
    if evaluation and evaluation.cost and evaluation.cost.size_bytes < _TINY:
        size = evaluation.cost.size_bytes / 1e6
        yield f"It is tiny ({size:.1f} MB): it knows its small world and no more."


def _data(
    version: VersionRef, tags: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, object]:
    told: dict[str, object] = {}
    for source in config.get("data", {}).get("source", []):
        told[f"source ({source['format']})"] = ", ".join(
            f"{key} {value}" for key, value in source.items() if key != "format" and value
        )
    told |= {
        label: tags[key]
        for key, label in {
            "dataset_digest": "digest",
            "dataset_dvc_md5": "DVC md5",
            "dataset_splits": "images",
        }.items()
        if key in tags
    }
    if report := _artifact(version, "dataset/report.json"):
        summary = json.loads(report)["summary"]
        told |= {f"checks, {name}": value for name, value in summary.items() if value}
    return told


def _training(run: "Run", evaluation: Evaluation | None) -> dict[str, object]:
    params, metrics = run.data.params, run.data.metrics
    told: dict[str, object] = {
        name.removeprefix("finetune."): params[name]
        for name in _PARAMETERS
        if params.get(name, "None") != "None"
    }
    if run.info.end_time:
        told["duration"] = f"{(run.info.end_time - run.info.start_time) / 60_000:.1f} minutes"
    gpus = {name.split("_")[1] for name in metrics if name.startswith("system/gpu_")}
    told["hardware"] = f"{len(gpus)} GPUs" if gpus else "CPU"
    if "images_per_second" in metrics:
        told["speed at its end"] = f"{metrics['images_per_second']:.0f} images a second"
    if evaluation and (cost := evaluation.cost):
        told["a caption takes"] = f"{1000 * cost.latency_seconds:.0f} ms on {cost.device}"
    return told


def _scores(evaluation: Evaluation | None) -> Iterator[dict[str, str]]:
    for name, part in evaluation.slices.items() if evaluation else ():
        for metric, value in part.corpus.items():
            bounds = part.intervals.get(metric)
            told = f"{bounds.low:.3f} to {bounds.high:.3f}" if bounds else ""
            yield {"slice": name, "metric": metric, "score": f"{value:.3f}", "interval": told}


def _evaluation(version: VersionRef) -> Evaluation | None:
    """None where its files are gone."""
    digest = versions.tags(version.name, version.version).get("evaluation")
    text = _artifact(version, f"evaluation/{digest}/{FILE}")
    return None if text is None else Evaluation.model_validate_json(text)


def _artifact(version: VersionRef, file: str) -> str | None:
    """A text of the version's run, None where it has none."""
    mlflow, run_id = runs.client(), version.model.run_id
    above = file.rpartition("/")[0] or None
    if all(found.path != file for found in mlflow.list_artifacts(run_id, above)):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.download_artifacts(run_id, file, folder)
        return Path(path).read_text(encoding="utf-8")


def _cell(value: object) -> str:
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
