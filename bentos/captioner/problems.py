"""Errors as JSON problems (RFC 9457): type, title, status, detail; never a stack trace."""

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from bentos.captioner.batching import QueueFull
from bentos.captioner.bodies import BadBody
from bentos.captioner.captured import CaptureUnavailable, UnknownRequest
from bentos.captioner.images import BadImage
from bentos.captioner.options import BadOptions

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = "1"
RETRIED = (429, 503)
# What our own code raises of what a request asks.
EXPECTED = (BadBody, BadImage, BadOptions, CaptureUnavailable, QueueFull, UnknownRequest)
# What of a picture is told by another status than 400.
_IMAGE_STATUS = {"unsupported_format": 415, "too_many_pixels": 413}


class Problem(BaseModel):
    """What went wrong, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str


def problem(status: int, detail: str, kind: str = "about:blank") -> Problem:
    """`kind` is its `type`: about:blank, or a word of ours, which gets its prefix here."""
    full = kind if kind == "about:blank" else f"urn:captionloop:{kind}"
    return Problem(type=full, title=HTTPStatus(status).phrase, status=status, detail=detail)


def answer(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The problem as a response, which says when to come again if that helps."""
    retry = {"Retry-After": RETRY_SECONDS} if problem.status in RETRIED else {}
    return JSONResponse(
        problem.model_dump(),
        problem.status,
        media_type=MEDIA_TYPE,
        headers={**retry, **(headers or {})},
    )


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error; the unexpected ones only stand in the log."""
    match error:
        case HTTPException():
            return problem(error.status_code, str(error.detail))
        case RequestValidationError():
            return problem(422, _details(error), "invalid-request")
        case BadOptions() | BadBody():
            return problem(422, str(error), "invalid-request")
        case BadImage():
            kind = f"image-{error.reason.replace('_', '-')}"
            return problem(_IMAGE_STATUS.get(error.reason, 400), str(error), kind)
        case UnknownRequest():
            return problem(404, str(error), "unknown-request")
        case QueueFull():
            return problem(429, str(error), "busy")
        case CaptureUnavailable():
            return problem(503, str(error))
    return problem(500, "The captioner failed; its log says why.")


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every error that the routes or FastAPI itself raise as a problem."""
    for kind in (*EXPECTED, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_problem)


def answer_problem(_: Request, error: Exception) -> JSONResponse:
    headers = error.headers if isinstance(error, HTTPException) else None
    return answer(problem_of(error), headers)


def _details(error: RequestValidationError) -> str:
    # What was sent is not repeated: it may be large, and may not be encodable.
    return "; ".join(
        f"{'.'.join(str(part) for part in entry['loc'])}: {entry['msg']}"
        for entry in error.errors()
    )
