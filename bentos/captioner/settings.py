"""What the environment tells a captioner."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal


class BadSetting(ValueError):
    """An environment variable has a value that can't be used."""


@dataclass(frozen=True)
class ServiceSettings:
    """`CAPTIONLOOP_*` variables; an absent one switches its part off or leaves the default."""

    workers: int = 1
    token: str | None = field(default=None, repr=False)  # the log shows the settings
    tokens_json: str | None = field(default=None, repr=False)
    tokens_file: Path | None = None
    open_metrics: bool = True
    cors_origins: tuple[str, ...] = ()
    captures: str | None = None
    capture_images: bool = True
    capture_max_bytes: int = 10 * 2**30
    capture_days: float = math.inf
    follow: str | None = None
    follow_seconds: float = 2.0
    shadow: str | None = None
    canary: str | None = None
    canary_share: float = 0.1
    max_body_bytes: int = 10 * 1024 * 1024
    max_pixels: int = 40_000_000
    max_images: int = 32
    max_new_tokens: int = 64
    max_beams: int = 5
    max_queue: int = 64
    max_requests: int = 256
    body_seconds: float = 20.0
    answer_seconds: float = 30.0

    @property
    def asks_for_tokens(self) -> bool:
        return any((self.token, self.tokens_json, self.tokens_file))

    @property
    def challenger(self) -> str | None:
        """The alias of the model that is tried out beside the champion."""
        return self.canary or self.shadow

    @property
    def role(self) -> Literal["canary", "shadow"]:
        """What a challenger is here."""
        return "canary" if self.canary else "shadow"

    @property
    def option_limits(self) -> dict[str, int]:
        """The most that a request may say of each of its options."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.max_beams,
            "num_captions": self.max_beams,
        }

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "ServiceSettings":
        """Read CAPTIONLOOP_TOKEN, _CAPTURES, _CAPTURE_IMAGES, _FOLLOW, …; empty means unset."""
        _check_registry(environment)
        tokens_file = environment.get("CAPTIONLOOP_TOKENS_FILE")
        return cls(
            workers=worker_count(environment),
            token=environment.get("CAPTIONLOOP_TOKEN") or None,
            tokens_json=environment.get("CAPTIONLOOP_TOKENS") or None,
            tokens_file=Path(tokens_file) if tokens_file else None,
            open_metrics=_flag(environment, "CAPTIONLOOP_OPEN_METRICS", cls.open_metrics),
            cors_origins=_origins(environment, "CAPTIONLOOP_CORS_ORIGINS"),
            captures=environment.get("CAPTIONLOOP_CAPTURES") or None,
            capture_images=_flag(environment, "CAPTIONLOOP_CAPTURE_IMAGES", cls.capture_images),
            capture_max_bytes=_count(
                environment, "CAPTIONLOOP_CAPTURE_MAX_BYTES", cls.capture_max_bytes
            ),
            capture_days=_positive(environment, "CAPTIONLOOP_CAPTURE_DAYS", cls.capture_days),
            follow=environment.get("CAPTIONLOOP_FOLLOW") or None,
            follow_seconds=_positive(environment, "CAPTIONLOOP_FOLLOW_SECONDS", cls.follow_seconds),
            shadow=environment.get("CAPTIONLOOP_SHADOW") or None,
            canary=environment.get("CAPTIONLOOP_CANARY") or None,
            canary_share=_share(environment, "CAPTIONLOOP_CANARY_SHARE", cls.canary_share),
            max_body_bytes=_count(environment, "CAPTIONLOOP_MAX_BODY_BYTES", cls.max_body_bytes),
            max_pixels=_count(environment, "CAPTIONLOOP_MAX_PIXELS", cls.max_pixels),
            max_images=_count(environment, "CAPTIONLOOP_MAX_IMAGES", cls.max_images),
            max_new_tokens=_count(environment, "CAPTIONLOOP_MAX_NEW_TOKENS", cls.max_new_tokens),
            max_beams=_count(environment, "CAPTIONLOOP_MAX_BEAMS", cls.max_beams),
            max_queue=_count(environment, "CAPTIONLOOP_MAX_QUEUE", cls.max_queue),
            max_requests=_count(environment, "CAPTIONLOOP_MAX_REQUESTS", cls.max_requests),
            body_seconds=_positive(environment, "CAPTIONLOOP_BODY_SECONDS", cls.body_seconds),
            answer_seconds=_positive(environment, "CAPTIONLOOP_ANSWER_SECONDS", cls.answer_seconds),
        )


def worker_count(environment: Mapping[str, str]) -> int:
    """CAPTIONLOOP_WORKERS, which is asked for before all the others. Raises BadSetting."""
    return _count(environment, "CAPTIONLOOP_WORKERS", ServiceSettings.workers)


def _origins(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    origins = tuple(environment.get(name, "").replace(",", " ").split())
    for origin in origins:
        scheme, separator, host = origin.partition("://")
        if scheme not in ("http", "https") or not separator or not host or "/" in host:
            raise BadSetting(f"{name} must list origins such as https://app.example, not {origin}.")
    return origins


def _check_registry(environment: Mapping[str, str]) -> None:
    """Raises BadSetting for one that stands without another that it needs, or against one."""
    for name, needed in (
        ("FOLLOW", "MLFLOW_TRACKING_URI"),
        ("SHADOW", "CAPTIONLOOP_FOLLOW"),
        ("CANARY", "CAPTIONLOOP_FOLLOW"),
        ("CANARY_SHARE", "CAPTIONLOOP_CANARY"),
    ):
        if environment.get(f"CAPTIONLOOP_{name}") and not environment.get(needed):
            raise BadSetting(f"CAPTIONLOOP_{name} needs {needed}: set it too.")
    challengers = ("CAPTIONLOOP_SHADOW", "CAPTIONLOOP_CANARY")
    if all(map(environment.get, challengers)):
        raise BadSetting(f"{' and '.join(challengers)} are set: keep one of them.")
    if follow := environment.get("CAPTIONLOOP_FOLLOW"):
        name, champion = name_and_alias(follow)
        if find_spec("mlflow") is None:
            raise BadSetting(
                "CAPTIONLOOP_FOLLOW needs MLflow, which is not installed here: package the Bento "
                "with `--extra mlflow` (package.extras), or install mlflow-skinny beside it."
            )
        for variable in filter(environment.get, challengers):
            other, alias = name_and_alias(environment[variable], variable)
            if other != name or alias == champion:
                raise BadSetting(f"{variable} must be another alias of {name} than {champion}.")


def name_and_alias(uri: str, variable: str = "CAPTIONLOOP_FOLLOW") -> tuple[str, str]:
    """Of a registered model, from `models:/<name>@<alias>`. Raises BadSetting."""
    match = re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri)
    if match is None:
        raise BadSetting(f"{variable} must be models:/<name>@<alias>, not {uri!r}.")
    name, alias = match.groups()
    return name, alias


def _share(environment: Mapping[str, str], name: str, default: float) -> float:
    share = _positive(environment, name, default)
    if share >= 1:
        raise BadSetting(f"{name} must be below 1, not {environment[name]!r}.")
    return share


def _flag(environment: Mapping[str, str], name: str, default: bool) -> bool:
    value = environment.get(name)
    if not value:
        return default
    if value not in ("0", "1"):
        raise BadSetting(f"{name} must be 0 or 1, not {value!r}.")
    return value == "1"


def _positive(environment: Mapping[str, str], name: str, default: float) -> float:
    value = environment.get(name)
    if not value:
        return default
    try:
        number = float(value)
    except ValueError as error:
        raise BadSetting(f"{name} must be a number, not {value!r}.") from error
    if not 0 < number < float("inf"):
        raise BadSetting(f"{name} must be positive, not {value!r}.")
    return number


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    number = _positive(environment, name, default)
    if number < 1 or number != int(number):
        raise BadSetting(f"{name} must be a whole number from 1 on, not {environment[name]!r}.")
    return int(number)
