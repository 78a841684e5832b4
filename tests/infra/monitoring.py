"""What our Prometheus, Alertmanager and Grafana files say, for their tests."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from configs.settings import ROOT

INFRA = ROOT / "infra"
RULES = sorted((INFRA / "prometheus" / "rules").glob("*.yml"))
DASHBOARDS = sorted((INFRA / "grafana" / "dashboards").glob("*.json"))


def rules() -> list[dict[str, Any]]:
    """Every rule of every file: {"record": …} or {"alert": …}."""
    return [
        rule
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """Those that show something; rows only part them."""
    every = json.loads(dashboard.read_text())["panels"]
    return [panel for panel in every if panel["type"] != "row"]


def expressions(dashboard: Path) -> Iterator[tuple[str, str]]:
    """(where, PromQL) of each panel and annotation, with the variables set to all there is."""
    told = json.loads(dashboard.read_text())
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield panel["title"], filled(target["expr"])
    for annotation in told["annotations"]["list"]:
        yield annotation["name"], filled(annotation["expr"])


def filled(expression: str) -> str:
    for variable, value in {"__rate_interval": "10m", "model": ".*", "instance": ".*"}.items():
        expression = expression.replace(f"${variable}", value)
    return expression


def selectors(expression: str) -> set[str]:
    """The series that an expression reads, as PromQL without range, offset or function."""
    found: set[str] = set()
    open_nodes: list[Any] = [promql_parser.parse(expression)]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, promql_parser.VectorSelector):
            matchers = ", ".join(map(str, node.matchers.matchers))
            found.add(f"{node.name or ''}{{{matchers}}}")
            continue
        for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
            if isinstance(inner := getattr(node, name, None), promql_parser.Expr):
                open_nodes.append(inner)
        open_nodes += getattr(node, "args", [])
    return found


def with_webhooks(url: str) -> str:
    """Alertmanager's configuration as the runbook makes it for versions before 0.26, which Debian
    has: each webhook's file of a URL is replaced by the URL, here `url` and the file's name."""
    text = (INFRA / "alertmanager" / "alertmanager.yml").read_text()
    return re.sub(r"url_file: /run/secrets/(\w+)-webhook-url", rf"url: {url}/\1", text)
