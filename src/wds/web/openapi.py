"""The OpenAPI document. The only module of the service that knows aiohttp_apispec.

A route's description stands beside its registration and is bound to one application, because
aiohttp_apispec consumes what its decorators leave on a function.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp_apispec import docs, json_schema, response_schema, setup_aiohttp_apispec

from wds import __version__
from wds.web import swagger
from wds.web.schemas import ErrorEnvelopeSchema

if TYPE_CHECKING:
    from collections.abc import Mapping

    import marshmallow as ma
    from aiohttp.typedefs import Handler

ERRORS = {
    400: "Not JSON, not whole, or a header twice that may be there once",
    401: "No valid signature or token",
    403: "Not for this client",
    404: "Nothing has this id or name",
    408: "The body did not arrive in time",
    409: "Something else is there: another payload under the key, or no state for this",
    413: "The body is too large",
    415: "Not JSON by its content type, or encoded",
    422: "The wrong shape, every problem listed; or a search that took too long",
    429: "Too many wrong tokens from this client; Retry-After says when to try again",
    503: "Not possible now; Retry-After says when to send again",
}


@dataclass(frozen=True)
class Operation:
    """What the document says of one route."""

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    answers: Mapping[int, tuple[str, type[ma.Schema] | None]]
    errors: tuple[int, ...] = ()
    body: type[ma.Schema] | None = None
    body_required: bool = True
    parameters: tuple[dict[str, Any], ...] = ()
    produces: tuple[str, ...] = ()
    """Content types of its answers beside JSON."""
    example: Mapping[str, Any] | None = None
    """A body that works as it is."""


_RETRY_AFTER = {"Retry-After": {"type": "integer", "description": "Seconds."}}
_INTRODUCTION = (
    "Every answer from 400 on has the same shape. What is no HTTP/1.1 is refused before there is"
    " a route: 400, 408 where the headers do not arrive in time, 417, 431."
)


def header(name: str, description: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Describe a request header; `more` are further words of OpenAPI 2.0."""
    return {
        "in": "header",
        "name": name,
        "type": "string",
        "required": False,
        "description": description,
        **more,
    }


def register(app: web.Application, operations: list[Operation]) -> None:
    """Add every route to `app`, described."""
    for operation in operations:
        app.router.add_route(operation.method, operation.path, _described(operation))


def serve_document(app: web.Application, title: str) -> None:
    """Serve the document at `/docs/openapi.json`."""
    with warnings.catch_warnings():
        # aiohttp_apispec keeps its state under plain strings, which aiohttp warns of.
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        setup_aiohttp_apispec(
            app,
            title=title,
            version=__version__,
            info={"description": _INTRODUCTION},
            url=swagger.DOCUMENT,
            in_place=True,
        )


def _described(operation: Operation) -> Handler:
    @functools.wraps(operation.handler)
    async def handler(request: web.Request) -> web.StreamResponse:
        return await operation.handler(request)

    described: Any = docs(
        summary=operation.summary,
        description=" ".join((operation.handler.__doc__ or "").split()),
        tags=[operation.tag],
        parameters=list(operation.parameters),
        consumes=["application/json"],
        produces=["application/json", *operation.produces],
    )(handler)
    if operation.body is not None:
        # Beside the schema: put into the route, aiohttp_apispec breaks the reference.
        described = json_schema(
            operation.body,
            example=operation.example,
            add_to_refs=True,
            required=operation.body_required,
        )(described)
    for status, (text, schema) in operation.answers.items():
        if schema is None:
            described.__apispec__["responses"][str(status)] = {"description": text}
        else:
            described = response_schema(schema, status, description=text)(described)
    for status in operation.errors:
        described = response_schema(ErrorEnvelopeSchema, status, description=ERRORS[status])(
            described
        )
    if (unavailable := described.__apispec__["responses"].get("503")) is not None:
        unavailable["headers"] = _RETRY_AFTER
    return cast("Handler", described)
