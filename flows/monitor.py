"""Monitor: has the world moved away from what the champion knows?"""

from collections.abc import Sequence

from prefect import flow
from prefect.states import Completed, State

from configs.loader import from_command_line, load
from tasks.monitor import announce_drift, detect_drift
from tasks.promote import current_champion


@flow
def monitor(config: str, overrides: Sequence[str] = ()) -> State:
    """Window → detector → report → event. The flow run's state names the outcome."""
    scenario = load(config, overrides)
    champion = current_champion(scenario.name)
    if champion is None:
        return Completed(name="NoChampion", message=f"{scenario.name} has no champion yet")
    report = detect_drift(champion, scenario.monitor, scenario.seed)
    if report.drifted:
        announce_drift(report, scenario)
    return Completed(name="Drift" if report.drifted else "NoDrift", message=report.reason)


if __name__ == "__main__":
    path, overrides, _ = from_command_line(__doc__)
    monitor(path, overrides)
