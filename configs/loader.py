"""Reads a scenario YAML with `key.sub=value` overrides into a frozen `Config`."""

import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from configs.schema import Config, Source
from configs.settings import ROOT


class ConfigError(ValueError):
    """A scenario that can't be used: names the file, the key and what was expected."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The scenario in `path`, looked up from the current folder, then from the project.

    Raises:
        ConfigError: with one line for a person; nothing was read half.
    """
    values = _read(path)
    for override in overrides:
        _apply(values, override, path)
    where = f"{path} (with {' '.join(overrides)})" if overrides else str(path)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {'; '.join(_explain(error, values))}") from None


def from_command_line(
    description: str, argv: Sequence[str] | None = None
) -> tuple[str, list[str], Config]:
    """Path, overrides and config of `CONFIG [key=value …]`; a wrong one ends with exit code 2."""
    arguments, config = parsed(command_line(description), argv)
    return arguments.config, arguments.overrides, config


def command_line(description: str) -> argparse.ArgumentParser:
    """A parser of `CONFIG [key=value …]`, for a command to add its own options to."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    parser = argparse.ArgumentParser(
        prog=f"python -m {module.name}" if module else None,
        description=description,
        epilog="Every key and its default is in configs/schema.py.",
    )
    parser.add_argument("config", help="a scenario, such as configs/demo.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as finetune.learning_rate=3e-5"
    )
    return parser


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, Config]:
    """The arguments and the config that they name; a wrong one ends with exit code 2."""
    arguments = parser.parse_intermixed_args(argv)
    try:
        return arguments, load(arguments.config, arguments.overrides)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def nonblank(text: str) -> str:
    """The type of an option that must say something."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must say something")
    return text.strip()


def _read(path: str | Path) -> dict[str, Any]:
    found = next((p for p in (Path(path), ROOT / path) if p.is_file()), None)
    if found is None:
        raise ConfigError(f"{path}: no such file; scenarios lie in {ROOT / 'configs'}")
    try:
        values = yaml.safe_load(found.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        assert mark is not None
        lines = found.read_text(encoding="utf-8").splitlines()
        text = lines[mark.line].strip() if mark.line < len(lines) else "end of file"
        raise ConfigError(
            f"{path}: line {mark.line + 1}, at '{text}': not valid YAML, {error.problem}"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML, {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys such as name, data, finetune; got {values!r}")
    return values


def _apply(values: dict[str, Any], override: str, path: str | Path) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{path}: override '{override}' is not of the form key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{path}: override {key}: '{text}' is not a YAML value") from None
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:  # also a section that the file names but leaves empty
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: override {key}: '{parent}' holds a value, not a section")
    values[last] = value


def _explain(error: ValidationError, values: dict[str, Any]) -> Iterator[str]:
    data = values.get("data")
    several = isinstance(data, dict) and isinstance(data.get("source"), list)
    for problem in error.errors():
        keys = [str(part) for part in problem["loc"]]
        if keys[:2] == ["data", "source"]:
            del keys[3:4]  # the union's tag, which no YAML holds
            if not several:
                del keys[2:3]
        key = ".".join(keys)
        if problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, list(_known_keys(Config)), n=1)
            yield f"{key}: no such key" + (f"; did you mean {close[0]}?" if close else "")
        elif problem["type"] == "union_tag_invalid":
            formats = ", ".join(_formats())
            yield f"{key}.format: expected one of {formats}; got {problem['ctx']['tag']!r}"
        elif problem["type"] == "missing":
            yield f"{key}: missing; it must be given"
        else:
            yield f"{key}: {problem['msg']}, got {problem['input']!r}"


def _formats() -> Iterator[str]:
    """What a source's `format` may be."""
    for section in _sections(Source):
        yield from get_args(section.model_fields["format"].annotation)


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in _sections(field.annotation):
            yield from _known_keys(inner, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field may hold, be it one, a union or a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
