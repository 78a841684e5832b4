"""The bodies in which pictures come, multipart, JSON or the picture itself, and their description
in OpenAPI."""

import base64
from typing import Annotated, Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from bentos.captioner.options import CaptionOptions
from bentos.captioner.settings import ServiceSettings

CANARY_KEY = "X-Canary-Key"
MULTIPART, JSON, IMAGE = "multipart/form-data", "application/json", "image/*"
_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 64 * 1024
Base64 = Annotated[
    str, Field(description="A picture in base64.", json_schema_extra={"contentEncoding": "base64"})
]


Body = TypeVar("Body", bound=CaptionOptions)


class BadBody(ValueError):
    """The body holds something else than it should."""


class CaptionBody(CaptionOptions):
    """One picture in JSON."""

    image: Base64


class CaptionsBody(CaptionOptions):
    """Several pictures in JSON."""

    images: list[Base64] = Field(min_length=1)


async def read_image(request: Request, settings: ServiceSettings) -> tuple[bytes, CaptionOptions]:
    """A request's picture, and its options from the query and the body, which wins.

    Raises BadBody, BadOptions, RequestValidationError, or HTTPException 400 and 415.
    """
    query = _valid(request.query_params)
    query.check(settings)
    match _content_type(request):
        case "multipart/form-data":
            images, options = await _multipart(request, "image", 1)
            return images[0], _merged(query, options, settings)
        case "application/json":
            sent = await _json(request, CaptionBody)
            return from_base64(sent.image), _merged(query, sent, settings)
        case kind if kind.startswith("image/"):
            return await request.body(), query
    raise HTTPException(415, f"Send a picture as {MULTIPART}, {IMAGE} or {JSON} with base64.")


async def read_images(
    request: Request, settings: ServiceSettings
) -> tuple[list[bytes | BadBody], CaptionOptions]:
    """A request's pictures, 1 to `max_images`, as `read_image` reads one; one that is no base64 is
    told in its place."""
    limit = settings.max_images
    query = _valid(request.query_params)
    query.check(settings)
    match _content_type(request):
        case "multipart/form-data":
            images, options = await _multipart(request, "images", limit)
            return list(images), _merged(query, options, settings)
        case "application/json":
            sent = await _json(request, CaptionsBody)
            if len(sent.images) > limit:
                raise BadBody(f"images: at most {limit} in one request.")
            options = _merged(query, sent, settings)
            return [_base64_or_error(text) for text in sent.images], options
    raise HTTPException(415, f"Send pictures as {MULTIPART}, or {JSON} with base64.")


def from_base64(text: str) -> bytes:
    """Raises BadBody."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadBody(f"image: no base64: {error}") from error


def _base64_or_error(text: str) -> bytes | BadBody:
    try:
        return from_base64(text)
    except BadBody as error:
        return error


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _multipart(
    request: Request, field: str, limit: int
) -> tuple[list[bytes], CaptionOptions]:
    form = await _form(request, limit)
    try:
        files = form.getlist(field)
        others = {name: value for name, value in form.items() if name != field}
        if not 1 <= len(files) <= limit:
            raise BadBody(f"{field}: send {'one file' if limit == 1 else f'1 to {limit} files'}.")
        images = [await file.read() for file in files if isinstance(file, UploadFile)]
    finally:
        await form.close()
    if len(images) < len(files):
        raise BadBody(f"{field}: send it as a file, with a filename.")
    return images, _valid(others)


async def _form(request: Request, limit: int) -> FormData:
    try:
        return await request.form(
            max_files=limit + 1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
        )
    except ValueError as error:  # of the charset it names: Starlette decodes by any of Python's
        raise HTTPException(400, f"The form can't be read: {error}") from error


async def _json(request: Request, kind: type[Body]) -> Body:
    try:
        return kind.model_validate_json(await request.body(), strict=True)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_input=False)) from error


def _valid(values: Any) -> CaptionOptions:
    try:
        return CaptionOptions.model_validate(dict(values))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_input=False)) from error


def _merged(
    query: CaptionOptions, body: CaptionOptions, settings: ServiceSettings
) -> CaptionOptions:
    body.check(settings)
    said = body.model_dump(exclude_unset=True, exclude={"image", "images"})
    options = CaptionOptions(**{**query.model_dump(exclude_unset=True), **said})
    options.check(settings)
    return options


def describe_image(settings: ServiceSettings) -> dict[str, Any]:
    """OpenAPI of what `read_image` reads."""
    picture = {"type": "string", "format": "binary"}
    content = {
        MULTIPART: {"schema": _form_schema(settings, {"image": picture})},
        JSON: {"schema": _json_schema(settings, CaptionBody)},
        IMAGE: {"schema": picture},
    }
    return {**_parameters(settings), "requestBody": {"required": True, "content": content}}


def describe_images(settings: ServiceSettings) -> dict[str, Any]:
    """OpenAPI of what `read_images` reads."""
    files = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": settings.max_images,
    }
    sent = _json_schema(settings, CaptionsBody)
    sent["properties"]["images"]["maxItems"] = settings.max_images
    content = {
        MULTIPART: {"schema": _form_schema(settings, {"images": files})},
        JSON: {"schema": sent},
    }
    return {**_parameters(settings), "requestBody": {"required": True, "content": content}}


def _parameters(settings: ServiceSettings) -> dict[str, Any]:
    fields = _form_schema(settings, {})["properties"]
    described = [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in fields.items()
    ]
    if settings.canary is not None:
        told = "Whoever sends the same is answered by the same model, champion or canary."
        schema = {"type": "string"}
        described.append(
            {"name": CANARY_KEY, "in": "header", "description": told, "schema": schema}
        )
    return {"parameters": described}


def _form_schema(settings: ServiceSettings, files: dict[str, Any]) -> dict[str, Any]:
    """As in JSON, but a form or a query can't say null."""
    fields = _json_schema(settings, CaptionOptions)["properties"]
    for field in fields.values():
        field.update(field.pop("anyOf", [{}])[0])
        field.pop("default", None)
    return {
        "type": "object",
        "properties": {**files, **fields},
        "required": list(files),
        "additionalProperties": False,
    }


def _json_schema(settings: ServiceSettings, kind: type[CaptionOptions]) -> dict[str, Any]:
    """A body's schema with this service's limits, which the class doesn't know."""
    schema = kind.model_json_schema()
    for name, limit in settings.option_limits.items():
        field = schema["properties"][name]
        field.get("anyOf", [field])[0]["maximum"] = limit
    return schema
