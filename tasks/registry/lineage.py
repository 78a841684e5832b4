"""What explains a version: config, commit, dataset, scores, verdict, written where people look."""

import json
import tempfile
from collections.abc import Mapping
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
    corpus = _corpus(scores.path)
    runs.log_metrics(
        model.run_id,
        {f"{name}_{metric}": v for name, found in corpus.items() for metric, v in found.items()},
    )


def tags(
    data: PreparedRef,
    scores: EvaluationRef,
    champion: VersionRef | None,
    reason: str,
) -> dict[str, str]:
    """The lineage of a version."""
    return {
        "reason": reason,
        "dataset_digest": data.digest,
        "dataset_dvc_md5": data.dvc_md5,
        "git_commit": runs.git_commit(),
        "evaluation": scores.digest,
        "parent_champion": str(champion.version) if champion else "none",
    }


def record_verdict(
    version: VersionRef, verdict: Verdict, comparisons: Mapping[str, Comparison]
) -> None:
    """Writes the verdict and its figures on the version."""
    figures = {
        name: {
            "champion": c.champion,
            "candidate": c.candidate,
            "difference": c.difference.mean,
            "low": c.difference.low,
            "high": c.difference.high,
        }
        for name, c in comparisons.items()
    }
    text = json.dumps(figures, indent=2)
    runs.client().log_text(version.model.run_id, text, _comparisons_file(version))
    _describe(version, verdict)


def _describe(version: VersionRef, verdict: Verdict) -> None:
    """Lists of versions show the first line alone."""
    first, *others = verdict.reasons
    told = [f"{verdict.decision}: {first}", "", *(f"- {reason}" for reason in others)]
    versions.tag(version, {"verdict": verdict.decision}, description="\n".join(told))


def record_answer(version: VersionRef, decided: Verdict, comment: str) -> None:
    """Writes what a person decided on the version: the answer, who, why and when."""
    _describe(version, decided)
    answer = {
        "approval": "approved" if decided.decision == "promote" else "rejected",
        "approval_by": decided.by,
        "approval_comment": comment,
        "approval_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    versions.tag(version, answer)


def record_bento(version: VersionRef, tag: str) -> None:
    """Names the Bento that passed its smoke run with this version."""
    versions.tag(version, {"bento": tag})


def record_promotion(version: VersionRef) -> None:
    """Says when the version became champion: only such a one can be rolled back to."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    versions.tag(version, {"promoted_at": now})


def labels(version: VersionRef, data: PreparedRef) -> dict[str, str]:
    """The labels of a version's Bento."""
    return {
        "model_name": version.name,
        "model_version": str(version.version),
        "dataset_digest": data.digest,
        "git_commit": runs.git_commit(),
    }


def scores(version: VersionRef) -> dict[str, dict[str, float]]:
    """Corpus scores by slice that `version` was judged by."""
    return _corpus(evaluation_folder(version))


def comparisons(version: VersionRef) -> dict[str, dict[str, float]]:
    """By slice: mean CIDEr of `champion` and `candidate`, and their `difference`, `low`, `high`."""
    with tempfile.TemporaryDirectory() as folder:
        file = _comparisons_file(version)
        path = Path(runs.client().download_artifacts(version.model.run_id, file, folder))
        found: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def bento(version: VersionRef) -> str | None:
    """The tag of the Bento that passed its smoke run, if `version` was ever promoted."""
    return _tags(version).get("bento")


def described(version: VersionRef) -> str:
    """The verdict in words."""
    return str(runs.client().get_model_version(version.name, str(version.version)).description)


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
    found: dict[str, str] = runs.client().get_model_version(version.name, str(version.version)).tags
    return found


def config_yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _corpus(folder: Path) -> dict[str, dict[str, float]]:
    return {name: s.corpus for name, s in Evaluation.load(folder).slices.items()}


def _comparisons_file(version: VersionRef) -> str:
    return f"gate/v{version.version}.json"
