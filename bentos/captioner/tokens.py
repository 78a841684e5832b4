"""Who may ask for what: bearer tokens with names and scopes, from the environment or a file."""

import hashlib
import hmac
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from bentos.captioner.settings import BadSetting, ServiceSettings

logger = logging.getLogger(__name__)

Scope = Literal["caption", "feedback", "captures", "metrics"]
ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))


class NamedToken(BaseModel):
    """A token; its name stands in the log, its scopes say which requests it opens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64)
    token: SecretStr = Field(min_length=1)
    scopes: frozenset[Scope] = ALL_SCOPES


_TOKENS = TypeAdapter(list[NamedToken])


class Tokens:
    """The tokens that are valid now; those of a file follow it without a restart."""

    def __init__(
        self,
        known: Sequence[NamedToken],
        *,
        file: Path | None = None,
        on_reload_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._file = file
        self._stamp = _stamp(file)
        self._on_reload_error = on_reload_error
        self._known = _digested(known)

    @classmethod
    def from_settings(
        cls, settings: ServiceSettings, *, on_reload_error: Callable[[], None] = lambda: None
    ) -> "Tokens | None":
        """None where no token is asked for. Raises BadSetting."""
        given = {
            "CAPTIONLOOP_TOKEN": settings.token,
            "CAPTIONLOOP_TOKENS": settings.tokens_json,
            "CAPTIONLOOP_TOKENS_FILE": settings.tokens_file,
        }
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise BadSetting(f"{' and '.join(names)} are set: keep one of them.")
        if settings.token is not None:
            return cls([NamedToken(name="default", token=SecretStr(settings.token))])
        if settings.tokens_json is not None:
            return cls(_parse(settings.tokens_json, "CAPTIONLOOP_TOKENS"))
        if settings.tokens_file is not None:
            known = _read(settings.tokens_file)
            return cls(known, file=settings.tokens_file, on_reload_error=on_reload_error)
        if not settings.open_metrics:
            raise BadSetting("CAPTIONLOOP_OPEN_METRICS=0 needs tokens: set CAPTIONLOOP_TOKEN too.")
        return None

    def find(self, authorization: str) -> NamedToken | None:
        """The token that an Authorization header carries, if it is one of ours."""
        self._follow_file()
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = _digest(given.strip().encode("latin-1"))  # as headers are decoded
        found = None
        for known, token in self._known:  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                found = token
        return found

    def _follow_file(self) -> None:
        """Take up a changed file; one that can't be read or is wrong leaves the tokens as is."""
        stamp = _stamp(self._file)
        if self._file is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._known = _digested(_read(self._file))
        except BadSetting as error:
            self._on_reload_error()
            logger.error("the tokens stay as they were: %s", error)
        else:
            logger.warning("%d tokens were read from %s", len(self._known), self._file)


def _read(file: Path) -> list[NamedToken]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"CAPTIONLOOP_TOKENS_FILE: {file} can't be read: {error}") from error
    return _parse(text, str(file))


def _parse(text: str, place: str) -> list[NamedToken]:
    """Raises BadSetting, which repeats no token."""
    try:
        tokens = _TOKENS.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadSetting(
            f"{place}: {where or 'the whole'}: {first['msg']}. "
            'Write [{"name": "app", "token": "…", "scopes": ["caption", "feedback"]}].'
        ) from error
    if not tokens or len({token.name for token in tokens}) < len(tokens):
        raise BadSetting(f"{place} needs at least one token, and a name of its own for each.")
    return tokens


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file is rewritten or replaced."""
    try:
        status = file.stat() if file is not None else None
    except OSError:
        return None
    return status and (status.st_mtime_ns, status.st_ino, status.st_size)


def _digested(tokens: Sequence[NamedToken]) -> list[tuple[bytes, NamedToken]]:
    return [(_digest(token.token.get_secret_value().encode()), token) for token in tokens]


def _digest(token: bytes) -> bytes:
    """As long for every token, so that comparing tells not even the length."""
    return hashlib.sha256(token).digest()
