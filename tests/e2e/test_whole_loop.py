"""The demo's story at a micro scale, on the same real servers: the loop from end to end."""

import io

import psutil
import pytest
import yaml
from rich.console import Console

from configs.loader import load
from configs.settings import ROOT
from infra import reaper
from infra.demo import Story, Teller
from infra.stack import Stack
from tasks.registry import versions

NAME = "micro-captioner"
FIRST = {"finetune": {"max_steps": 400, "learning_rate": 1.5e-3, "batch_size": 32}}
RETRAIN = ["data.use_feedback=true", "model.base=champion", "finetune.max_steps=250"]


def _micro_config(folder):
    scenario = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    scenario |= {"name": NAME, **FIRST}
    scenario["data"]["source"]["count"] = 900
    scenario["retrain"] = {"min_labels": 50}
    scenario["gate"] = {"floors": {"cider": 0.1}, "margin": 1.0, "min_images": 20}
    scenario["monitor"] = {"min_requests": 60, "backend": "native"}
    path = folder / "micro.yaml"
    path.write_text(yaml.safe_dump(scenario))
    return path


def _micro_deployments(folder, config):
    """The project's own prefect.yaml with another scenario, so that its automation is tested."""
    text = (ROOT / "prefect.yaml").read_text().replace("demo-captioner", NAME)
    deployments = yaml.safe_load(text)
    for deployment in deployments["deployments"]:
        parameters = deployment.get("parameters", {})
        if "config" in parameters:
            parameters["config"] = str(config)
        if "overrides" in parameters:
            parameters["overrides"] = RETRAIN
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump(deployments))
    return path


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_the_loop_trains_serves_sees_drift_retrains_and_swaps(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPTIONLOOP_VAR", str(tmp_path / "var"))
    for key in Stack(NAME).environment:
        monkeypatch.setenv(key, "")  # what the stack sets, it must not leave to other tests
        monkeypatch.delenv(key)
    monkeypatch.setenv("CAPTIONLOOP_VAR", str(tmp_path / "var"))
    config = _micro_config(tmp_path)
    teller = Teller(Console(file=io.StringIO(), width=120))
    with Stack(NAME, prefect_file=_micro_deployments(tmp_path, config)) as stack:
        story = Story(teller, load(config), stack, ordinary_requests=80, shifted_requests=200)
        story.tell()
        held = versions.aliases(NAME)
        assert (held[versions.CHAMPION], held[versions.PREVIOUS]) == (2, 1)
        marked = reaper.members(stack.mark)
        assert marked
    assert not [p for p in marked if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
