"""The README's examples, run as they stand there but for the address and the token."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from bentos.captioner.capture import read_window
from tests.bentos.serving import site

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("## The HTTP API") : README.index("## Production set-up")]


def examples(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    return block


@pytest.fixture
def folder(tmp_path, picture, encode) -> Path:
    (tmp_path / "picture.png").write_bytes(encode(picture(0)))
    (tmp_path / "other.jpg").write_bytes(encode(picture(1), "JPEG"))
    return tmp_path


def test_the_curl_examples_get_captions(model, folder) -> None:
    commands = examples("sh").splitlines()
    assert len(commands) == 4
    with site(model) as url:
        for command in commands:
            words = shlex.split(command.replace("http://127.0.0.1:3000", url))
            done = subprocess.run(
                [*words, "-sS", "--fail-with-body"], cwd=folder, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert '"caption":' in done.stdout


def test_the_python_example_captions_corrects_and_forgets(
    model, folder, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(folder)
    with site(model, token="sesame", captures=folder / "captures") as url:
        code = examples("python").replace("http://127.0.0.1:3000", url).replace("…", "sesame")
        exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.split()[-1] == "7"
    assert read_window(folder / "captures", model_version=None, limit=9) == []
