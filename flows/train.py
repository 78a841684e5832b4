"""Train: from sources to a champion, or to a reasoned no."""

from collections.abc import Sequence

from prefect import flow
from prefect.states import Completed, State

from configs.loader import from_command_line, load
from flows.approval import approval
from flows.dataset import dataset
from flows.finetune import finetune_anywhere
from tasks.evaluate import evaluate, evaluate_champion
from tasks.feedback import collect_labels
from tasks.gallery import show_gallery
from tasks.gate import gate
from tasks.package import package
from tasks.promote import current_champion, promote
from tasks.refs import Verdict
from tasks.register import register


@flow
def train(config: str, overrides: Sequence[str] = (), reason: str = "by hand") -> Verdict | State:
    """The whole DAG. A stage whose inputs and code are unchanged is a cache hit."""
    scenario = load(config, overrides)
    champion = current_champion(scenario.name)
    labels = collect_labels(scenario, champion)
    if not labels.enough:
        return Completed(name="LabelsWanted", message=labels.message)

    data = dataset(scenario, labels.source)
    model = finetune_anywhere(scenario, data, champion)
    if champion and champion.model.digest == model.digest:
        told = f"{champion} is this model already"
        return Completed(name="Unchanged", message=told)
    scores = evaluate(model, data, scenario.evaluate)
    champion_scores = evaluate_champion(champion, data, scenario.evaluate)
    show_gallery(model, data, scores, champion, champion_scores, scenario.evaluate)
    challenger = register(scenario, model, data, scores, champion, reason)
    verdict = gate(challenger, scores, champion, champion_scores, scenario.gate)
    if verdict.decision == "needs_approval":
        verdict = approval(challenger, verdict, scenario.gate.approval_hours)
    if verdict.decision == "promote":
        bento = package(challenger, scenario.package)
        promote(challenger, bento, over=champion, why=verdict.reasons[0], by=verdict.by)
    return verdict


if __name__ == "__main__":
    path, overrides, _ = from_command_line(__doc__)
    train(path, overrides)
