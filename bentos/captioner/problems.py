"""Errors as JSON problems (RFC 9457): type, title, status, detail; never a stack trace."""

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from bentos.captioner.batching import QueueFull
from bentos.captioner.capture import CaptureUnavailable, UnknownRequest
from bentos.captioner.images import BadImage

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = "1"


def problem(
    status: int, detail: str, *, kind: str = "about:blank", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A problem answer; `kind` is its `type`."""
    body = {
        "type": kind,
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    return JSONResponse(body, status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every error that the routes or FastAPI itself raise as a problem."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(BadImage, _bad_image)
    app.add_exception_handler(UnknownRequest, _unknown)
    app.add_exception_handler(QueueFull, _busy)
    app.add_exception_handler(CaptureUnavailable, _unavailable)
    app.add_exception_handler(Exception, _unexpected)


def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), headers=error.headers)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # What was sent is not repeated: it may be large, and may not be encodable.
    details = [
        f"{'.'.join(str(part) for part in entry['loc'])}: {entry['msg']}"
        for entry in error.errors()
    ]
    return problem(422, "; ".join(details), kind="urn:captionloop:invalid-request")


def _bad_image(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BadImage)
    status = 415 if error.reason == "unsupported_format" else 400
    kind = f"urn:captionloop:image-{error.reason.replace('_', '-')}"
    return problem(status, str(error), kind=kind)


def _unknown(_: Request, error: Exception) -> JSONResponse:
    return problem(404, str(error), kind="urn:captionloop:unknown-request")


def _busy(_: Request, error: Exception) -> JSONResponse:
    return problem(
        429, str(error), kind="urn:captionloop:busy", headers={"Retry-After": RETRY_SECONDS}
    )


def _unavailable(_: Request, error: Exception) -> JSONResponse:
    return problem(503, str(error), headers={"Retry-After": RETRY_SECONDS})


def _unexpected(_: Request, __: Exception) -> JSONResponse:
    return problem(500, "The captioner failed; its log says why.")
