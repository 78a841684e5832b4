"""What happens to every request before a route sees it: counted, let in or not, cut when too big.

Plain ASGI, so that a body is refused while it arrives and a token is asked for before it is read.
"""

import hmac
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bentos.captioner.problems import RETRY_SECONDS, problem

if TYPE_CHECKING:
    from bentos.captioner.runtime import Runtime


class Guard:
    """Counts and times every answer; 503 before the start, 401 without the token, 413 too large."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        runtime: Runtime | None = scope["app"].state.runtime
        if runtime is None:
            answer = problem(
                503, "The model is not loaded yet.", headers={"Retry-After": RETRY_SECONDS}
            )
            await answer(scope, receive, send)
            return
        await self._counted(runtime, scope, receive, send)

    async def _counted(
        self, runtime: "Runtime", scope: Scope, receive: Receive, send: Send
    ) -> None:
        started = time.perf_counter()
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(runtime, scope, receive, noting)
        finally:
            # The route's template, so that no stranger can make up new label values.
            route = getattr(scope.get("route"), "path", "other")
            runtime.telemetry.requests.labels(route, str(status)).inc()
            runtime.telemetry.latency.labels(route).observe(time.perf_counter() - started)

    async def _guarded(
        self, runtime: "Runtime", scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = Headers(scope=scope)
        token, limit = runtime.settings.token, runtime.settings.max_body_bytes
        if token is not None and not _carries(headers, token):
            answer = problem(
                401,
                "Send the token: Authorization: Bearer …",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await answer(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            await problem(413, _too_large(limit))(scope, receive, send)
            return
        await self._app(scope, _limited(receive, limit), send)


def _carries(headers: Headers, token: str) -> bool:
    given = headers.get("authorization", "").encode("latin-1")
    return hmac.compare_digest(given, b"Bearer " + token.encode())


def _too_large(limit: int) -> str:
    return f"The body is larger than {limit} bytes."


def _limited(receive: Receive, limit: int) -> Receive:
    """`receive` that stops a body without a length, or a lying one, at the limit."""
    received = 0

    async def counting() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return counting
