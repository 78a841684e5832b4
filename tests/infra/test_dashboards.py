"""The dashboards are what their source says, complete, and what Grafana's schema allows."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from infra.grafana.__main__ import FOLDER, rendered
from tests.infra.monitoring import DASHBOARDS, panels

SCHEMA = Path(__file__).parent / "grafana"
# Where @grafana/schema has a panel's options and custom fields.
PANEL_TYPES = {"stat": "stat", "timeseries": "timeseries", "state-timeline": "statetimeline"}


def test_the_dashboards_on_disk_are_those_of_their_source() -> None:
    assert {path: path.read_text() for path in FOLDER.iterdir()} == dict(rendered())


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_what_it_shows_in_which_unit_and_by_which_name(dashboard: Path) -> None:
    told = json.loads(dashboard.read_text())
    ids = [panel["id"] for panel in told["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_lie_on_the_grid_without_overlap(dashboard: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(dashboard.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + across, place["y"] + down)
            for across in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken
        taken |= cells


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_variable_is_used_and_every_one_used_exists(dashboard: Path) -> None:
    told = json.loads(dashboard.read_text())
    declared = {variable["name"] for variable in told["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", dashboard.read_text())) - {"__rate_interval", "__all"}
    assert used == declared


@pytest.fixture(scope="module")
def grafana_schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Grafana's own types and a TypeScript compiler."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed here")
    folder = tmp_path_factory.mktemp("schema")
    shutil.copytree(SCHEMA, folder, dirs_exist_ok=True)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=folder, check=True, timeout=180)
    return folder


def refused(folder: Path, dashboards: list[dict]) -> set[int]:
    """Which of the dashboards the compiler refuses as literals of Grafana's types."""
    lines = ['import type { AnnotatedDashboard, Json, PanelOf, Row } from "./types";']
    for module in PANEL_TYPES.values():
        path = f"@grafana/schema/dist/esm/raw/composable/{module}/panelcfg/x"
        (found,) = (folder / "node_modules" / path).glob("*_types.gen.d.ts")
        lines.append(f'import type * as {module} from "{path}/{found.name}";')
    before = len(lines)
    for dashboard in dashboards:
        typed = [(dashboard, "AnnotatedDashboard")]
        typed += [(panel, type_of(panel)) for panel in dashboard["panels"]]
        lines.append(
            " ".join(f"({json.dumps(one)}) satisfies Json<{kind}>;" for one, kind in typed)
        )
    (folder / "check.ts").write_text("\n".join(lines) + "\n")
    tsc = [folder / "node_modules" / ".bin" / "tsc", "--project", "."]
    said = subprocess.run(tsc, cwd=folder, capture_output=True, text=True, timeout=180).stdout
    assert set(re.findall(r"^(\S+?)\(", said, re.MULTILINE)) <= {"check.ts"}, said
    found = {
        int(line) - 1 - before for line in re.findall(r"^check\.ts\((\d+),", said, re.MULTILINE)
    }
    if found:
        print(said[:5000])
    return found


def type_of(panel: dict) -> str:
    if panel["type"] == "row":
        return "Row"
    module = PANEL_TYPES[panel["type"]]
    custom = "{}" if module == "stat" else f"{module}.FieldConfig"
    return f"PanelOf<{module}.Options, {custom}>"


def test_the_dashboards_are_of_the_types_that_grafana_knows(grafana_schema: Path) -> None:
    assert refused(grafana_schema, [json.loads(path.read_text()) for path in DASHBOARDS]) == set()


def test_a_dashboard_with_a_wrong_key_or_type_is_found_out(grafana_schema: Path) -> None:
    wrong = [
        broken("refresh", 5),
        broken("notAKey", 1),
        broken("templating", "list", 0, "type", "guess"),
        broken("panels", 1, "gridPos", None),
        broken("panels", 1, "fieldConfig", "defaults", "unit", 7),
        broken("panels", 1, "options", "colorMode", "rainbow"),
        broken("panels", 6, "fieldConfig", "defaults", "custom", "lineWidth", "thick"),
    ]
    assert refused(grafana_schema, wrong) == set(range(len(wrong)))


def broken(*where_and_what: object) -> dict:
    """The dashboard of the service with something else at one place."""
    *where, last, value = where_and_what
    dashboard = inner = json.loads((FOLDER / "service.json").read_text())
    for key in where:
        inner = inner[key]
    inner[last] = value
    return dashboard
