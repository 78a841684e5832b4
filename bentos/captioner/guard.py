"""What happens to every request before a route sees it: named, logged, counted, let in or not, cut
when too big or too slow.

Plain ASGI, so that a body is refused while it arrives and a token is asked for before it is read.
"""

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bentos.captioner.problems import Problem, answer, problem
from bentos.captioner.request_ids import new_request_id
from bentos.captioner.tokens import NamedToken, Tokens

if TYPE_CHECKING:
    from bentos.captioner.runtime import Runtime

access_log = logging.getLogger("captioner.access")
REQUEST_ID = "X-Request-ID"
_DRAIN_SECONDS = 5.0
# The client may still be sending: it is told that nobody listens any more.
_CLOSING = {"Connection": "close"}


class Entrance:
    """Lets requests through to `app` once there is one; 503 before the start and after the end."""

    app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        closed = answer(problem(503, "The model is not loaded yet."))
        await (self.app or closed)(scope, receive, send)


class Guard:
    """Around the API: the limits, the tokens, the clock, the access log and the metrics."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        runtime: "Runtime",
        tokens: Tokens | None,
        public: Collection[str],
    ) -> None:
        self._app = app
        self._settings = runtime.settings
        self._telemetry = runtime.telemetry
        self._tracing = runtime.tracing
        self._tokens = tokens
        self._public = public
        self._let_in = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        state = scope.setdefault("state", {})
        state.update(request_id=new_request_id(), token=None, status=None)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = state["request_id"]
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        self._telemetry.in_progress.inc()
        try:
            await self._guarded(scope, receive, noting)
        finally:
            self._telemetry.in_progress.dec()
            self._note(scope, time.perf_counter() - started)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(scope, receive, self._settings.max_body_bytes)
        refusal, headers = self._refusal(scope)
        if refusal is not None:
            await body.drain()
            await answer(refusal, headers)(scope, receive, send)
            return
        self._let_in += 1
        try:
            await self._timed(scope, body, send)
        finally:
            self._let_in -= 1

    async def _timed(self, scope: Scope, body: "_Body", send: Send) -> None:
        try:
            async with asyncio.timeout(self._seconds(body)) as clock:
                body.on_end = lambda: clock.reschedule(
                    asyncio.get_running_loop().time() + self._settings.answer_seconds
                )
                await self._app(scope, body.receive, send)
        except TimeoutError:
            if not clock.expired():
                raise
            if scope["state"]["status"] is None:  # else the client takes its answer too slowly
                late, headers = self._late(body)
                await answer(late, headers)(scope, body.receive, send)

    def _refusal(self, scope: Scope) -> tuple[Problem | None, dict[str, str]]:
        """Why a request is not even read, by its head alone."""
        headers = Headers(scope=scope)
        if self._let_in >= self._settings.max_requests:
            return problem(429, "Too many requests are in progress.", "busy"), _CLOSING
        if self._tokens is not None and scope["path"] not in self._public:
            token = self._tokens.find(headers.get("authorization", ""))
            if token is None:
                refused = problem(401, "Send a valid token: Authorization: Bearer …")
                return refused, {"WWW-Authenticate": "Bearer"}
            scope["state"]["token"] = token
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.max_body_bytes:
            return problem(413, _too_large(self._settings.max_body_bytes)), _CLOSING
        return None, {}

    def _seconds(self, body: "_Body") -> float:
        return self._settings.answer_seconds if body.whole else self._settings.body_seconds

    def _late(self, body: "_Body") -> tuple[Problem, dict[str, str]]:
        seconds = self._seconds(body)
        if body.whole:
            return problem(504, f"There is no answer after {seconds:g} s.", "deadline"), {}
        return problem(408, f"The body was not there after {seconds:g} s.", "slow-body"), _CLOSING

    def _note(self, scope: Scope, seconds: float) -> None:
        status = scope["state"]["status"] or 500
        # The route's template, so that no stranger can make up new label values; where ours had
        # none, BentoML's mount left its own, which is empty.
        route = getattr(scope.get("route"), "path", "") or "other"
        self._telemetry.requests.labels(route, str(status)).inc()
        self._telemetry.latency.labels(route).observe(seconds)
        token: NamedToken | None = scope["state"]["token"]
        access_log.info(
            json.dumps(
                {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "request_id": scope["state"]["request_id"],
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "seconds": round(seconds, 6),
                    "token": token and token.name,
                    **({"trace_id": self._tracing.trace_id} if self._tracing else {}),
                }
            )
        )


class _Body:
    """A request's body as it comes: cut at the limit, even if it has no length or a lying one."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        self._limit = limit
        self._received = 0
        self._asks_first = "expect" in headers
        self.whole = (
            "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        )
        self.on_end = lambda: None

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if not self.whole and not message.get("more_body", False):
            self.whole = True
            self.on_end()
        if self._received > self._limit:
            await self.drain()
            raise HTTPException(413, _too_large(self._limit), _CLOSING)
        return message

    async def drain(self) -> None:
        """Read on for a while and forget it: a client that is cut off while it sends sees a broken
        connection instead of its answer. One that asks before it sends needs none of this."""
        if self._asks_first:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self.whole:
                    self.whole = not (await self._receive()).get("more_body", False)


def log_as_json(*loggers: logging.Logger) -> None:
    """To stdout, one JSON object a line and nothing around it, as each message is."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for each in loggers:
        each.handlers = [handler]
        each.setLevel(logging.INFO)
        each.propagate = False


def _too_large(limit: int) -> str:
    return f"The body is larger than {limit} bytes."
