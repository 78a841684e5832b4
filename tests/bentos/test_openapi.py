"""The description at /v1/openapi.json against the API that it describes, by schemathesis."""

import subprocess
import sys

import pytest

from tests.bentos.serving import site

# A schema can't say what a picture is, nor that `num_captions` is at most `num_beams`.
CONFIG = """
hooks = "hooks"
[checks.positive_data_acceptance]
enabled = false
"""
# In a form every value is text: a `prompt` of another type can't be sent, nor refused.
HOOKS = """
import schemathesis

@schemathesis.hook
def filter_case(context, case):
    form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    return not form or isinstance(case.body.get("prompt", ""), str)
"""


@pytest.mark.e2e
def test_the_api_does_what_its_description_says(model, tmp_path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    (tmp_path / "hooks.py").write_text(HOOKS)
    tried = {"canary": "models:/tiny@challenger"}
    with site(model, captures=tmp_path / "captures", token="sesame", **tried) as url:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/v1/openapi.json"]
        command += ["--url", url, "--header", "Authorization: Bearer sesame"]
        command += ["--max-examples", "40", "--seed", "0"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 selected / 5 total" in done.stdout
