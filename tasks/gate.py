"""Gate: does the challenger deserve to replace the champion? Statistics decide."""

from prefect import get_run_logger, task

from configs.schema import GateConfig
from tasks.artifacts import publish
from tasks.metrics import gate as rules
from tasks.metrics.evaluation import Evaluation, EvaluationUnreadable
from tasks.refs import EvaluationRef, Verdict, VersionRef
from tasks.registry import lineage


@task
def gate(
    challenger: VersionRef,
    candidate_scores: EvaluationRef,
    champion: VersionRef | None,
    champion_scores: EvaluationRef | None,
    config: GateConfig,
) -> Verdict:
    """The verdict, written on the challenger's version too."""
    candidate, against = readable(candidate_scores), readable(champion_scores)
    verdict = rules.judge(candidate, against, config, champion_exists=champion is not None)
    comparisons = rules.compare(candidate, against, config) if candidate and against else {}
    lineage.record_verdict(challenger, verdict, comparisons)
    lines = [f"## {verdict.decision}", "", *(f"- {reason}" for reason in verdict.reasons)]
    publish("gate", "\n".join([*lines, "", rules.table(comparisons)]), "The verdict")
    return verdict


def readable(scores: EvaluationRef | None) -> Evaluation | None:
    """The evaluation, or None where there is none to be read: the gate has a rule for that."""
    try:
        return Evaluation.load(scores.path) if scores else None
    except EvaluationUnreadable as error:
        get_run_logger().warning("%s", error)
        return None
