"""`BY_CONTENT`: a task runs again when its inputs or the code it reaches changed, and only then."""

import ast
import hashlib
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger
from prefect.results import ResultStore, get_result_store
from pydantic import BaseModel

from tasks.refs import Ref

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bentos", "configs", "flows", "infra", "tasks")

# `package.module` or `package.module:attribute`, as `python -m` and servers are told.
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+(:\w+)?")

# Code edited after this moment may not be the code that this process has loaded.
_STARTED = time.time()


class CannotKey(ValueError):
    """An input or a task that no cache key can be made of."""


@dataclass
class ByContent(CachePolicy):
    """Key = task name + inputs by content + the code that the task's module reaches.

    Prefect logs what `compute_key` raises and runs the task uncached, so a mistake costs time,
    never a stale result. Use it alone: a sum of policies would hash the generation away.
    """

    root: Path = ROOT
    packages: tuple[str, ...] = PACKAGES

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        task = task_ctx.task
        code = _reach(task.fn.__module__, self.root, self.packages)
        if edited := code.edited_since(_STARTED):
            get_run_logger().warning(
                "Not cached: %s changed since this process started, so what runs may be older.",
                ", ".join(edited),
            )
            return None
        content = [content_digest(value, name) for name, value in sorted(inputs.items())]
        slug = re.sub(r"[^a-z0-9]+", "-", task.name.lower())
        key = f"{slug}-{_hash(task.name, *sorted(inputs), *content, code.fingerprint())}"
        return _trusted(key, get_result_store())


BY_CONTENT = ByContent()


def _trusted(key: str, store: ResultStore) -> str:
    """The first generation of `key` (itself, `-1`, `-2` …) with no record or with all its bytes.

    A record whose bytes are gone stays where it is; its successor is computed and becomes the hit.
    """
    generation, candidate = 0, key
    while store.exists(candidate) and (lost := list(_lost(store.read(candidate).result))):
        get_run_logger().warning(
            "Recomputing: the cached result points at %s, which is gone.", ", ".join(lost)
        )
        generation += 1
        candidate = f"{key}-{generation}"
    return candidate


def _lost(value: Any) -> Iterator[str]:
    """URIs of the refs and paths anywhere in a stored result whose bytes are no longer there."""
    if isinstance(value, Ref):
        if not value.exists():
            yield value.uri
    elif isinstance(value, Path):
        if not value.exists():
            yield str(value)
    else:
        for _, part in _parts(value):
            yield from _lost(part)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Names and values directly inside a model, a dataclass or a collection; none in the rest."""
    if isinstance(value, BaseModel):
        yield from ((f".{name}", part) for name, part in value)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{field.name}", getattr(value, field.name)) for field in fields(value))
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))


# --- inputs ---------------------------------------------------------------------------------------


def content_digest(value: Any, name: str) -> str:
    """Hex digest of what `value` means; `name` says where it came from when it can't be told.

    A ref is its class and digest wherever it lies, a path the bytes it leads to, a model or
    dataclass its class and fields. Raises CannotKey for anything that isn't made of these,
    of collections and of plain values.
    """
    kind = type(value).__qualname__
    match value:
        case Ref():
            return _hash("ref", kind, value.digest)
        case Path():
            return _hash("path", *_bytes_of(value, name))
        case Enum():
            return _hash("enum", kind, value.name)
        case bytes():
            return _hash("bytes", hashlib.sha256(value).hexdigest())
        case None | bool() | int() | float() | str():
            return _hash("plain", kind, repr(value))
        case set() | frozenset():
            return _hash("set", *sorted(content_digest(part, f"{name}{{}}") for part in value))
        case dict():
            items = ((content_digest(k, f"{name} (key)"), k) for k in value)
            pairs = sorted((key, content_digest(value[k], f"{name}[{k!r}]")) for key, k in items)
            return _hash("dict", *(part for pair in pairs for part in pair))
        case list() | tuple():
            parts = (content_digest(part, name + at) for at, part in _parts(value))
            return _hash("list" if isinstance(value, list) else "tuple", kind, *parts)
    if isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type)):
        named = ((at, content_digest(part, name + at)) for at, part in _parts(value))
        return _hash("fields", kind, *(text for pair in named for text in pair))
    raise CannotKey(
        f"{name} is a {kind}, which has no content to key a cache by: "
        "pass a Ref, a Path, a config section or plain values."
    )


def _bytes_of(path: Path, name: str) -> Iterator[str]:
    """A file's digest, or each file's place and digest in a folder, in order of the places."""
    if path.is_file():
        yield _file_digest(path)
    elif path.is_dir():
        places = {file.relative_to(path).as_posix(): file for file in path.rglob("*")}
        for place, file in sorted(places.items()):
            if file.is_file():
                yield from (place, _file_digest(file))
    else:
        raise CannotKey(f"{name} is {path}, where there is no file or folder to key a cache by.")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(*texts: str) -> str:
    """Digest of the texts, each with its length before it so that no two lists look the same."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()


# --- code -----------------------------------------------------------------------------------------


def fingerprint(module: str, *, root: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> str:
    """Digest of the code that `module` reaches: it and its transitive imports in `packages`.

    Comments, formatting and docstrings don't count. Imports count wherever they stand, and so
    does a string that names a module of the project (`python -m …`). Other libraries count by
    name and version, the standard library not at all.
    """
    return _reach(module, root, packages).fingerprint()


@dataclass(frozen=True)
class _Source:
    """One parsed file: a digest of its code, its imports as (level, module, names), and the
    dotted names that stand in it as strings."""

    digest: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]
    dotted_strings: frozenset[str]


@dataclass(frozen=True)
class _Code:
    """Everything a module reaches: project files by module name, other libraries by import name."""

    files: dict[str, Path]
    libraries: frozenset[str]

    def fingerprint(self) -> str:
        own = [f"{module} {_source(self.files[module]).digest}" for module in sorted(self.files)]
        return _hash(*own, *(_release(library) for library in sorted(self.libraries)))

    def edited_since(self, moment: float) -> list[str]:
        return sorted(m for m, file in self.files.items() if file.stat().st_mtime > moment)


def _reach(module: str, root: Path, packages: tuple[str, ...]) -> _Code:
    """Follow imports from `module` until nothing new turns up."""
    if module.partition(".")[0] not in packages or _file_of(module, root) is None:
        raise CannotKey(f"{module} is no module of {', '.join(packages)} under {root}.")
    files: dict[str, Path] = {}
    libraries: set[str] = set()
    waiting = _with_parents(module)
    while waiting:
        name = waiting.pop()
        file = _file_of(name, root)
        if name in files or file is None:  # A name that is no file: a folder or an attribute.
            continue
        files[name] = file
        for target in _imported(name, file):
            top = target.partition(".")[0]
            if top in packages:
                waiting += _with_parents(target)
            elif top not in sys.stdlib_module_names:
                libraries.add(top)
        for text in _source(file).dotted_strings:
            if text.partition(".")[0] in packages:
                waiting += _with_parents(text)
    return _Code(files, frozenset(libraries))


def _file_of(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split("."))
    candidates = (base / "__init__.py", base.with_name(f"{base.name}.py"))
    return next((file for file in candidates if file.is_file()), None)


def _with_parents(module: str) -> list[str]:
    """`a.b.c` → `a`, `a.b`, `a.b.c`: importing the last runs the `__init__` of the others."""
    parts = module.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _imported(module: str, file: Path) -> Iterator[str]:
    """Absolute names of what a file imports; of `from a import b` both `a` and `a.b`."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for level, source, names in _source(file).imports:
        above = package[: len(package) - level + 1] if level else []
        base = ".".join([*above, *([source] if source else [])])
        yield base
        yield from (f"{base}.{name}" for name in names)


def _source(file: Path) -> _Source:
    state = file.stat()
    return _parse(file, state.st_mtime_ns, state.st_size)


@cache
def _parse(file: Path, _mtime_ns: int, _size: int) -> _Source:
    """Read one file; the arguments that it doesn't use make it read again after an edit."""
    tree = _without_docstrings(ast.parse(file.read_bytes(), filename=str(file)))
    imports: list[tuple[int, str, tuple[str, ...]]] = []
    dotted: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                imports += [(0, alias.name, ()) for alias in node.names]
            case ast.ImportFrom():
                names = tuple(alias.name for alias in node.names)
                imports.append((node.level, node.module or "", names))
            case ast.Constant(value=str(text)) if _DOTTED.fullmatch(text):
                dotted.add(text.partition(":")[0])
    return _Source(_hash(ast.dump(tree)), tuple(imports), frozenset(dotted))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            del node.body[0]
    return tree


def _release(library: str) -> str:
    """`name==version` of what provides the top-level import `library`."""
    distributions = sorted(set(_distributions().get(library, ())))
    releases = (f"{name}=={metadata.version(name)}" for name in distributions)
    return " ".join(releases) or f"{library} is not installed"


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())
