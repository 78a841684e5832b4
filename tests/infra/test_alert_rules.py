"""The rules are sound, each alert fires when it should and only then, and says where to read on."""

import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from configs.settings import ROOT
from tests.infra.monitoring import DASHBOARDS, INFRA, RULES, alerts, panels

UNIT_TESTS = sorted((Path(__file__).parent / "rules").glob("*.yml"))


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def test_prometheus_can_use_the_configuration_and_all_its_rules() -> None:
    checked = promtool("check", "config", INFRA / "prometheus" / "prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    assert f"{len(RULES)} rule files found" in checked.stdout


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_on_the_series_that_they_should_and_on_no_others(path: Path) -> None:
    tested = promtool("test", "rules", path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_of_every_alert_it_is_tested_that_it_fires_and_that_it_does_not() -> None:
    fires, stays_quiet = set(), set()
    for path in UNIT_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for check in case["promql_expr_test"]:
                alert = re.search('alertname="(.+?)"', check["expr"])[1]
                (fires if check["exp_samples"] else stays_quiet).add(alert)
    assert fires == stays_quiet == {rule["alert"] for rule in alerts()}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_how_bad_it_is_and_where_to_read_on(rule) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    path, anchor = rule["annotations"]["runbook_url"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
    assert anchor == rule["alert"].lower()


def test_the_runbook_knows_no_alert_that_is_gone() -> None:
    text = (INFRA / "RUNBOOK.md").read_text()
    assert set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == {
        rule["alert"] for rule in alerts()
    }


def test_a_check_is_missed_after_two_periods_of_the_monitors_schedule() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (monitor,) = [one for one in deployments if one["name"] == "demo-monitor"]
    minutes = re.fullmatch(r"\*/(\d+) \* \* \* \*", monitor["schedules"][0]["cron"])[1]
    period = timedelta(minutes=int(minutes))
    (rule,) = [rule for rule in alerts() if rule["alert"] == "DriftCheckMissing"]
    assert rule["expr"].endswith(f"> 2 * {period.total_seconds():.0f}")


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_the_runbook_names_the_panels_of_each_dashboard(dashboard: Path) -> None:
    text = (INFRA / "RUNBOOK.md").read_text()
    section = text.split(f"### The {dashboard.stem} dashboard\n")[1].split("\n### ")[0]
    named = [
        cell
        for row in re.findall(r"^\| .+? \| (.+) \|$", section, re.M)
        for cell in row.split(", ")
    ]
    assert [name for name in named if name not in ("panels", "---")] == [
        panel["title"] for panel in panels(dashboard)
    ]
