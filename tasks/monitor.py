"""Monitor: what production sends against what the champion was validated on."""

from prefect import task
from prefect.events import emit_event

from configs.schema import Config, MonitorConfig
from configs.settings import settings
from tasks.artifacts import publish
from tasks.drift import reference, report, window
from tasks.refs import VersionRef
from tasks.registry import lineage


@task
def detect_drift(champion: VersionRef, config: MonitorConfig, seed: int) -> report.DriftReport:
    """Tests the newest captured requests against the champion's reference set."""
    expected = reference.load(lineage.evaluation_folder(champion))
    seen = window.read(settings().captures_url, str(champion.version), config)
    result = report.check(expected, seen, config, seed)
    publish("drift", result.markdown(), "Drift report")
    return result


@task
def announce_drift(result: report.DriftReport, config: Config) -> None:
    """Emits the event that the automation in `prefect.yaml` answers with a retraining."""
    emit_event(
        event="captionloop.drift.detected",
        resource={
            "prefect.resource.id": f"captionloop.model.{config.name}",
            "prefect.resource.name": config.name,
        },
        payload=result.payload(),
    )
