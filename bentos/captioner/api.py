"""The HTTP API under /v1: caption a picture, correct a caption, ask which model answers."""

import asyncio
from typing import Annotated, Any

from fastapi import Depends, FastAPI, File, Request, Response, UploadFile
from pydantic import BaseModel, StringConstraints

from bentos.captioner.guard import Guard
from bentos.captioner.problems import add_problem_handlers
from bentos.captioner.runtime import Answer, Runtime

CLIENT_GONE = 499


class ModelName(BaseModel):
    name: str
    version: str


class CaptionResponse(BaseModel):
    request_id: str
    caption: str
    log_probability: float
    model: ModelName
    timings: dict[str, float]


class FeedbackRequest(BaseModel):
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    caption: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class FeedbackResponse(BaseModel):
    request_id: str
    stored: bool


class ModelResponse(ModelName):
    source: str
    image_size: int
    card: dict[str, Any]


def create_app() -> FastAPI:
    """The API; it answers 503 until `app.state.runtime` is a Runtime."""
    # FastAPI's documentation pages would load scripts from elsewhere: only openapi.json stays.
    app = FastAPI(title="captioner", docs_url=None, redoc_url=None)
    app.state.runtime = None
    app.add_middleware(Guard)
    add_problem_handlers(app)
    app.post("/caption", response_model=CaptionResponse)(caption)
    app.post("/feedback", status_code=201)(feedback)
    app.get("/model")(model)
    return app


def _runtime(request: Request) -> Runtime:
    return request.app.state.runtime


async def caption(
    request: Request,
    runtime: Annotated[Runtime, Depends(_runtime)],
    image: Annotated[UploadFile, File(description="A JPEG, PNG, WEBP or GIF.")],
) -> Any:
    """Caption one picture."""
    data = await image.read()
    answer = await _unless_gone(request, asyncio.ensure_future(runtime.caption(data)))
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    return CaptionResponse(
        request_id=answer.request_id,
        caption=answer.caption.text,
        log_probability=answer.caption.log_probability,
        model=ModelName(name=answer.model.name, version=answer.model.version),
        timings=answer.timings,
    )


async def feedback(
    sent: FeedbackRequest, runtime: Annotated[Runtime, Depends(_runtime)]
) -> FeedbackResponse:
    """Send the caption that a person would have written for an earlier request."""
    await runtime.feedback(sent.request_id, sent.caption)
    return FeedbackResponse(request_id=sent.request_id, stored=True)


async def model(runtime: Annotated[Runtime, Depends(_runtime)]) -> ModelResponse:
    """The model that answers now, its card, and where it came from."""
    served = runtime.model
    return ModelResponse(
        name=served.name,
        version=served.version,
        source=served.source,
        image_size=served.engine.image_size,
        card=served.engine.card,
    )


async def _unless_gone(request: Request, work: "asyncio.Future[Answer]") -> Answer | None:
    """The work's result; if the client hangs up first, the work is cancelled and None returned."""
    gone = asyncio.ensure_future(_hung_up(request))
    either: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        gone.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
