"""Search: trials of other settings, the best of them registered as a candidate."""

import sys
from collections.abc import Sequence

from prefect import flow
from prefect.states import Completed, State

from configs.loader import ConfigError, from_command_line, load
from flows.dataset import dataset
from tasks.evaluate import evaluate
from tasks.feedback import collect_labels
from tasks.promote import current_champion
from tasks.refs import VersionRef
from tasks.register import register
from tasks.search import best_trial, searching, try_out


@flow
def search(config: str, overrides: Sequence[str] = ()) -> VersionRef | State:
    """What `search.space` holds, tried `search.trials` times; goes on where it was killed.

    Trains where it runs, whatever `finetune.deployment` says. The winner becomes the challenger;
    training with its settings puts it before the gate.
    """
    scenario = load(config, overrides)
    if scenario.search is None:
        raise ConfigError(f"{config}: search: missing; it must be given")
    champion = current_champion(scenario.name)
    labels = collect_labels(scenario, champion)
    if not labels.enough:
        return Completed(name="LabelsWanted", message=labels.message)
    data = dataset(scenario, labels.source)
    with searching(scenario, data, champion) as under_way:
        for number in under_way.missing():
            try_out(under_way, number)
        winner, model = best_trial(under_way)
    if champion and champion.model.digest == model.digest:
        told = f"{champion} is this model already"
        return Completed(name="Unchanged", message=told)
    scores = evaluate(model, data, winner.evaluate)
    return register(winner, model, data, scores, champion, "search")


if __name__ == "__main__":
    path, overrides, scenario = from_command_line(__doc__)
    if scenario.search is None:
        print(f"error: {path}: search: missing; it must be given", file=sys.stderr)
        raise SystemExit(2)
    search(path, overrides)
