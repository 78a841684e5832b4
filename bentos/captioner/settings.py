"""What the environment tells a captioner."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class BadSetting(ValueError):
    """An environment variable has a value that can't be used."""


@dataclass(frozen=True)
class ServiceSettings:
    """`CAPTIONLOOP_*` variables; an absent one switches its part off or leaves the default."""

    token: str | None = None
    captures: Path | None = None
    capture_images: bool = True
    follow: str | None = None
    follow_seconds: float = 2.0
    max_body_bytes: int = 10 * 1024 * 1024

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "ServiceSettings":
        """Read CAPTIONLOOP_TOKEN, _CAPTURES, _CAPTURE_IMAGES, _FOLLOW, …; empty means unset."""
        captures = environment.get("CAPTIONLOOP_CAPTURES")
        follow = environment.get("CAPTIONLOOP_FOLLOW") or None
        if follow is not None and not environment.get("MLFLOW_TRACKING_URI"):
            raise BadSetting("CAPTIONLOOP_FOLLOW needs MLFLOW_TRACKING_URI: set it too.")
        return cls(
            token=environment.get("CAPTIONLOOP_TOKEN") or None,
            captures=Path(captures) if captures else None,
            capture_images=_flag(environment, "CAPTIONLOOP_CAPTURE_IMAGES", cls.capture_images),
            follow=follow,
            follow_seconds=_positive(environment, "CAPTIONLOOP_FOLLOW_SECONDS", cls.follow_seconds),
            max_body_bytes=int(
                _positive(environment, "CAPTIONLOOP_MAX_BODY_BYTES", cls.max_body_bytes)
            ),
        )


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
