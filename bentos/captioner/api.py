"""The HTTP API under /v1: caption pictures, correct a caption, forget a picture, ask which model
answers."""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, Path, Request, Response
from fastapi.security import HTTPBearer
from fastapi.telemetry import TelemetryConfig
from pydantic import BaseModel, Field, StringConstraints
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect

from bentos.captioner import page
from bentos.captioner.bodies import (
    CANARY_KEY,
    BadBody,
    describe_image,
    describe_images,
    read_image,
    read_images,
)
from bentos.captioner.clients import name_of
from bentos.captioner.guard import REQUEST_ID, Guard
from bentos.captioner.options import CaptionOptions
from bentos.captioner.problems import (
    EXPECTED,
    MEDIA_TYPE,
    Problem,
    add_problem_handlers,
    answer_problem,
    problem_of,
)
from bentos.captioner.runtime import Answer, Runtime
from bentos.captioner.settings import ServiceSettings
from bentos.captioner.tokens import NamedToken, Scope, Tokens
from bentos.captioner.tracing import Tracing

CLIENT_GONE = 499
METRICS = "/metrics"
# What the guard answers whatever was asked.
_ALWAYS = (401, 429, 503, 504)
RequestId = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Result = TypeVar("Result")


class ModelName(BaseModel):
    name: str
    version: str


class ScoredCaption(BaseModel):
    caption: str
    log_probability: float = Field(description="Summed over the caption's tokens, its end too.")


class CaptionResponse(ScoredCaption):
    request_id: str
    captions: list[ScoredCaption] = Field(
        description="The `num_captions` best, the best one first."
    )
    model: ModelName
    timings: dict[str, float] = Field(description="In seconds.")


class Refused(BaseModel):
    """What is said of a picture that could not be captioned."""

    problem: Problem


class CaptionsResponse(BaseModel):
    request_id: str
    results: list[CaptionResponse | Refused] = Field(description="In the order of the pictures.")


class FeedbackRequest(BaseModel):
    request_id: RequestId
    caption: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class FeedbackResponse(BaseModel):
    request_id: str
    stored: bool


class ChallengerResponse(ModelName):
    role: Literal["canary", "shadow"]
    share: float | None = Field(description="Of the requests, that a canary answers.")


class ModelResponse(ModelName):
    source: str
    image_size: int
    card: dict[str, Any]
    challenger: ChallengerResponse | None = Field(description="What is tried out beside it.")


def create_app(runtime: Runtime) -> FastAPI:
    """The API and the page, over a runtime. Raises BadSetting for tokens that can't be used."""
    tokens = Tokens.from_settings(
        runtime.settings, on_reload_error=runtime.telemetry.token_reload_errors.inc
    )
    # FastAPI's documentation pages would load scripts from elsewhere: only openapi.json stays.
    app = FastAPI(
        title="captioner",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        # A redirection would go to whatever host the request names, and by http behind a proxy.
        redirect_slashes=False,
        telemetry=_telemetry(runtime.tracing),
    )
    app.state.runtime = runtime
    _add_routes(app, runtime.settings)
    page.add_routes(app)
    # Within the guard, so that its answer is named, counted and logged as any other.
    app.add_middleware(ServerErrorMiddleware, handler=answer_problem)
    public = {METRICS, *page.PATHS} if runtime.settings.open_metrics else page.PATHS
    app.add_middleware(Guard, runtime=runtime, tokens=tokens, public=public)
    if runtime.settings.cors_origins:
        app.add_middleware(  # outermost: a browser asks first, and without a token
            CORSMiddleware,
            allow_origins=runtime.settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", CANARY_KEY],
            expose_headers=[REQUEST_ID, "Retry-After"],
        )
    add_problem_handlers(app)
    app.add_exception_handler(ClientDisconnect, _nobody_is_there)
    return app


def _telemetry(tracing: Tracing | None) -> TelemetryConfig:
    """What FastAPI itself tells OpenTelemetry: a span for each request, or nothing."""
    return {
        "tracing": tracing is not None,
        "tracer_provider": tracing.provider if tracing else None,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
    }


def _add_routes(app: FastAPI, settings: ServiceSettings) -> None:
    """On the app itself, without dependencies: FastAPI's routers and dependencies take a third of
    the time that a request costs beside its caption."""
    asked = [Depends(HTTPBearer(auto_error=False))] if settings.asks_for_tokens else []

    def add(method: str, path: str, *statuses: int, **options: Any) -> Callable[..., Any]:
        return app.api_route(
            f"/v1{path}",
            methods=[method],
            dependencies=asked,
            responses=_problems(*statuses),
            **options,
        )

    body = (400, 403, 408, 413, 415, 422)
    add(
        "POST",
        "/caption",
        *body,
        response_model=CaptionResponse,
        openapi_extra=describe_image(settings),
    )(caption)
    add(
        "POST",
        "/captions",
        *body,
        response_model=CaptionsResponse,
        openapi_extra=describe_images(settings),
    )(captions)
    add("POST", "/feedback", 400, 403, 404, 408, 413, 422, status_code=201)(feedback)
    add("DELETE", "/captures/{request_id}", 403, 404, 422, status_code=204)(delete_capture)
    add("GET", "/model")(model)
    app.get(METRICS, include_in_schema=False)(metrics)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted({*statuses, *_ALWAYS})
    }


def _runtime(request: Request, scope: Scope | None = None) -> Runtime:
    """The runtime, for a token that has the scope; without tokens everybody may do everything."""
    token: NamedToken | None = request.state.token
    if scope is not None and token is not None and scope not in token.scopes:
        challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
        raise HTTPException(
            403,
            f"The token {token.name!r} has no scope {scope!r}.",
            {"WWW-Authenticate": challenge},
        )
    return request.app.state.runtime


async def caption(request: Request) -> Response:
    """Caption one picture."""
    runtime = _runtime(request, "caption")
    data, options = await read_image(request, runtime.settings)
    answer = _caption(
        runtime,
        data,
        options,
        request_id=request.state.request_id,
        canary_key=_canary_key(request, runtime),
    )
    return _json(await _unless_gone(request, answer))


async def captions(request: Request) -> Response:
    """Caption several pictures; each has a result or a problem of its own."""
    runtime = _runtime(request, "caption")
    pictures, options = await read_images(request, runtime.settings)
    # The others' places stay open to them.
    share = asyncio.Semaphore(max(1, runtime.settings.max_queue // 4))
    key = _canary_key(request, runtime)

    async def each(picture: bytes | BadBody) -> CaptionResponse | Refused:
        async with share:
            try:
                if isinstance(picture, BadBody):
                    raise picture
                return await _caption(runtime, picture, options, canary_key=key)
            except EXPECTED as error:
                return Refused(problem=problem_of(error))

    made = await _unless_gone(request, asyncio.gather(*map(each, pictures)))
    return _json(CaptionsResponse(request_id=request.state.request_id, results=made))


async def feedback(request: Request, sent: FeedbackRequest) -> FeedbackResponse:
    """Send the caption that a person would have written for an earlier request."""
    runtime = _runtime(request, "feedback")
    client = name_of(request.state.token, request.client and request.client.host)
    await runtime.feedback(sent.request_id, sent.caption, client)
    return FeedbackResponse(request_id=sent.request_id, stored=True)


async def delete_capture(
    request: Request, request_id: Annotated[str, Path(min_length=1, max_length=64)]
) -> None:
    """Forget a request: its record, its picture and its feedback."""
    await _runtime(request, "captures").delete_capture(request_id)


async def model(request: Request) -> ModelResponse:
    """The model that answers now, its card, where it came from, and what is tried out beside it."""
    runtime = _runtime(request)
    served = runtime.model
    challenger = None
    if (tried := runtime.challenger) is not None:
        settings = runtime.settings
        challenger = ChallengerResponse(
            name=tried.name,
            version=tried.version,
            role=settings.role,
            share=settings.canary_share if settings.canary else None,
        )
    return ModelResponse(
        name=served.name,
        version=served.version,
        source=served.source,
        image_size=served.engine.image_size,
        card=served.engine.card,
        challenger=challenger,
    )


def metrics(request: Request) -> Response:
    told = _runtime(request, "metrics").telemetry.exposition()
    return Response(told, media_type="text/plain; version=0.0.4")


def _canary_key(request: Request, runtime: Runtime) -> bytes | None:
    """What keeps a client on its side of a canary, if it says so."""
    if runtime.settings.canary is None:
        return None
    return request.headers.get(CANARY_KEY, "").encode("latin-1") or None


async def _caption(
    runtime: Runtime,
    data: bytes,
    options: CaptionOptions,
    *,
    request_id: str | None = None,
    canary_key: bytes | None = None,
) -> CaptionResponse:
    try:
        answer = await runtime.caption(data, options, request_id=request_id, canary_key=canary_key)
    except EXPECTED:
        runtime.telemetry.images.labels("refused").inc()
        raise
    runtime.telemetry.images.labels("captioned").inc()
    return _response(answer)


def _json(content: BaseModel) -> Response:
    return Response(content.model_dump_json(), media_type="application/json")


def _response(answer: Answer) -> CaptionResponse:
    best = answer.caption
    return CaptionResponse(
        request_id=answer.request_id,
        caption=best.text,
        log_probability=best.log_probability,
        captions=[
            ScoredCaption(caption=one.text, log_probability=one.log_probability)
            for one in best.alternatives or (best,)
        ],
        model=ModelName(name=answer.model.name, version=answer.model.version),
        timings=answer.timings,
    )


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The work's result; if the client hangs up first, the work is cancelled.

    Raises ClientDisconnect.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    either: set[asyncio.Future[Any]] = {working, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


def _nobody_is_there(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
