"""Alerts go where their severity says, in messages a person can bear."""

import subprocess
from pathlib import Path

import pytest

from tests.infra.monitoring import alerts, with_webhooks


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alertmanager") / "alertmanager.yml"
    path.write_text(with_webhooks("http://127.0.0.1:9"))
    return path


def amtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["amtool", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_alertmanager_can_use_the_configuration(configuration: Path) -> None:
    checked = amtool("check-config", configuration)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_what_is_critical_wakes_somebody_up_and_nothing_else_does(configuration, rule) -> None:
    labels = {"alertname": rule["alert"], **rule["labels"]}
    receiver = "pager" if labels["severity"] == "critical" else "tickets"
    routed = amtool(
        *("config", "routes", "test", f"--config.file={configuration}"),
        f"--verify.receivers={receiver}",
        *(f"{name}={value}" for name, value in labels.items()),
    )
    assert routed.returncode == 0, routed.stdout + routed.stderr
