"""The OpenAPI document of a service. No other module of the service imports aiohttp_apispec.

A route is registered and described in one step, by an `Operation`. Each application wraps its
handlers anew, because aiohttp_apispec consumes the attributes that its decorators put on a
function.
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
    400: "Not JSON, incomplete, or a header repeated that must be given once",
    401: "No valid signature or token",
    403: "Not for this client",
    404: "Nothing has this id or name",
    408: "The body did not arrive in time",
    409: "A conflict: another payload under the key, or the wrong state for this",
    413: "The body is too large",
    415: "Not JSON by its content type, or encoded",
    422: "The wrong shape, every problem listed; or a search that took too long",
    429: "Too many wrong tokens from this client; Retry-After says when to try again",
    503: "Not possible now; Retry-After says when to try again",
}


@dataclass(frozen=True)
class Operation:
    """One route and its description.

    The handler's docstring is the description's text. `answers` maps a status to a text and the
    schema of the body; None for a body that is not JSON. `errors` are statuses in `ERRORS`.
    """

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
    """Content types of the answers, in addition to JSON."""
    example: Mapping[str, Any] | None = None
    """A body that the route accepts as it is."""


_RETRY_AFTER = {"Retry-After": {"type": "integer", "description": "Seconds."}}
_INTRODUCTION = (
    "Every answer from 400 on has the same shape. Requests that are not valid HTTP/1.1 are refused"
    " before routing: with 400, with 408 if the headers do not arrive in time, with 417 or 431."
)


def header(name: str, description: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Describe a request header; `more` are further keywords of OpenAPI 2.0."""
    return {
        "in": "header",
        "name": name,
        "type": "string",
        "required": False,
        "description": description,
        **more,
    }


def register(app: web.Application, operations: list[Operation]) -> None:
    """Add every route to `app` with its description."""
    for operation in operations:
        app.router.add_route(operation.method, operation.path, _described(operation))


def serve_document(app: web.Application, title: str) -> None:
    """Serve the document at `/docs/openapi.json`."""
    with warnings.catch_warnings():
        # aiohttp warns of application keys that are plain strings; aiohttp_apispec uses them.
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
        # `add_to_refs` puts the example beside the schema. In the route itself, aiohttp_apispec
        # would break the reference to the schema.
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
