"""What explains a version: config, commit, dataset, scores, verdict, written where people look."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml

from configs.schema import Config
from configs.settings import settings
from tasks.data import folders
from tasks.metrics.evaluation import Evaluation
from tasks.metrics.gate import Comparison
from tasks.refs import EvaluationRef, ModelRef, PreparedRef, Verdict, VersionRef
from tasks.registry import runs, versions

# What a description tells of the tags, and how it calls them.
LABELS = {
    "reason": "trained because",
    "parent_champion": "champion at that time",
    "run": "MLflow run, with the config, the evaluation and the checks",
    "dataset_digest": "dataset",
    "dataset_dvc_md5": "DVC md5",
    "dataset_splits": "images",
    "config_digest": "config digest",
    "git_commit": "commit",
}
_MAX_DESCRIPTION = 5000  # characters; PostgreSQL refuses more


def record(config: Config, model: ModelRef, data: PreparedRef, scores: EvaluationRef) -> None:
    """Puts the resolved config, the scores, and the files of the evaluation and of the dataset's
    checks on the model's run."""
    mlflow = runs.client()
    mlflow.log_text(model.run_id, config_yaml(config), "config.yaml")
    mlflow.log_artifacts(model.run_id, scores.uri, f"evaluation/{scores.digest}")
    for name in ("report.html", "report.json", "quarantine.jsonl"):
        # Made where the data was validated, which may have been another machine.
        if (found := Path(data.report).with_name(name)).exists():
            mlflow.log_artifact(model.run_id, str(found), "dataset")
    figures: dict[str, float] = {}
    for name, part in Evaluation.load(scores.path).slices.items():
        figures |= {f"{name}_{metric}": value for metric, value in part.corpus.items()}
        for metric, bounds in part.intervals.items():
            figures[f"{name}_{metric}_low"] = bounds.low
            figures[f"{name}_{metric}_high"] = bounds.high
    runs.log_metrics(model.run_id, figures)


def tags(
    config: Config,
    model: ModelRef,
    data: PreparedRef,
    scores: EvaluationRef,
    champion: VersionRef | None,
    reason: str,
) -> dict[str, str]:
    """The lineage of a version."""
    return {
        "reason": reason,
        "run": runs.link(model.run_id),
        "config_digest": hashlib.sha256(config_yaml(config).encode()).hexdigest(),
        "dataset_digest": data.digest,
        "dataset_dvc_md5": data.dvc_md5,
        "dataset_splits": ", ".join(f"{name} {n}" for name, n in data.split_sizes.items()),
        "git_commit": runs.git_commit(),
        "evaluation": scores.digest,
        "parent_champion": str(champion.version) if champion else "none",
    }


def record_verdict(
    version: VersionRef, verdict: Verdict, comparisons: Mapping[str, Comparison]
) -> None:
    """Writes the verdict and its figures on the version."""
    figures = {name: comparison.figures() for name, comparison in comparisons.items()}
    text = json.dumps(figures, indent=2)
    runs.client().log_text(version.model.run_id, text, comparisons_file(version))
    _decide(version, verdict)


def _decide(version: VersionRef, verdict: Verdict, **told: str) -> None:
    if verdict.decision == "reject":  # services that try challengers out are rid of it
        versions.withdraw(version)
    lines = "\n".join(" ".join(reason.split()) for reason in verdict.reasons)
    told |= {"verdict": verdict.decision, "reasons": lines}
    versions.tag(version.name, version.version, told)
    describe(version.name, version.version)


def record_periods(name: str, version: int, periods: Sequence[str]) -> None:
    """Writes when, by whom and why a version was made champion, and replaced."""
    told = {"champion_periods": "\n".join(periods)}
    if told.items() - versions.tags(name, version).items():
        versions.tag(name, version, told)
    describe(name, version)


def describe(name: str, version: int) -> None:
    """The description, from the tags: verdict, times as champion, what the version is made of."""
    tags = versions.tags(name, version)
    first, *others = _judged(tags)
    lines = [first, ""]  # lists of versions show the first line alone
    others += tags.get("champion_periods", "").splitlines()
    others += [f"{label}: {tags[key]}" for key, label in LABELS.items() if key in tags]
    others.append(f"model card: card/v{version}.md of the run")
    lines += [f"- {line}" for line in others]
    versions.describe(name, version, "\n".join(lines)[:_MAX_DESCRIPTION])


def record_answer(version: VersionRef, decided: Verdict, comment: str) -> None:
    """Writes what a person decided on the version: the answer, who, why and when."""
    _decide(
        version,
        decided,
        approval="approved" if decided.decision == "promote" else "rejected",
        approval_by=decided.by,
        approval_comment=comment,
        approval_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def record_bento(version: VersionRef, tag: str) -> None:
    """Names the Bento that passed its smoke run with this version."""
    versions.tag(version.name, version.version, {"bento": tag})


def labels(version: VersionRef) -> dict[str, str]:
    """The labels of a version's Bento; the commit is that of the service's code."""
    return {
        "model_name": version.name,
        "model_version": str(version.version),
        "dataset_digest": _tags(version)["dataset_digest"],
        "git_commit": runs.git_commit(),
    }


def scores(version: VersionRef) -> dict[str, dict[str, float]]:
    """Corpus scores by slice that `version` was judged by."""
    return _corpus(evaluation_folder(version))


def comparisons(version: VersionRef) -> dict[str, dict[str, float]]:
    """By slice, the figures that the gate compared `version` by (`Comparison.figures`)."""
    with tempfile.TemporaryDirectory() as folder:
        file = comparisons_file(version)
        path = Path(runs.client().download_artifacts(version.model.run_id, file, folder))
        found: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def dataset_rows(version: VersionRef) -> str | None:
    """The DVC md5 of the rows that its dataset was read from."""
    tags: dict[str, str] = runs.client().get_run(version.model.run_id).data.tags
    return tags.get("dataset_rows_dvc_md5")


def bento(version: VersionRef) -> str | None:
    """The tag of the Bento that passed its smoke run, if `version` was ever promoted."""
    return _tags(version).get("bento")


def judged(version: VersionRef) -> list[str]:
    """The verdict in words, and its reasons, what decided first."""
    return _judged(_tags(version))


def _judged(tags: Mapping[str, str]) -> list[str]:
    first, *others = tags.get("reasons", "not judged yet").splitlines()
    return [f"{tags['verdict']}: {first}" if "verdict" in tags else first, *others]


def evaluation_folder(version: VersionRef) -> Path:
    """The files of the evaluation that `version` was judged by, fetched when they aren't here."""
    digest = _tags(version)["evaluation"]
    local = settings().var / "evaluations" / digest
    if local.exists():
        return local
    with folders.staging(local.parent) as staged:
        artifact = f"evaluation/{digest}"
        fetched = runs.client().download_artifacts(version.model.run_id, artifact, str(staged))
        return folders.publish(Path(fetched), local)


def _tags(version: VersionRef) -> dict[str, str]:
    return versions.tags(version.name, version.version)


def config_yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _corpus(folder: Path) -> dict[str, dict[str, float]]:
    return {name: s.corpus for name, s in Evaluation.load(folder).slices.items()}


def card_file(version: VersionRef) -> str:
    return f"card/v{version.version}.md"


def comparisons_file(version: VersionRef) -> str:
    return f"gate/v{version.version}.json"
