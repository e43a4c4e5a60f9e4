"""The OpenAPI document. The only module of the service that imports aiohttp_apispec.

The document is made at the first request for it: few processes get one, and importing
aiohttp_apispec and making the document at the start would take a fifth of the start-up time. Each
document has wrappers of the handlers, because aiohttp_apispec consumes what its decorators leave on
a function.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from wds import __version__
from wds.web import swagger
from wds.web.schemas import ErrorEnvelopeSchema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    """A body that the route accepts unchanged."""


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


def register(app: web.Application, operations: Sequence[Operation], title: str) -> None:
    """Add every route to `app`, and their document at `/docs/openapi.json`."""
    for operation in operations:
        app.router.add_route(operation.method, operation.path, operation.handler)
    document = Document(operations, title)
    app[DOCUMENT] = document
    app.router.add_get(swagger.DOCUMENT, document.answer)


class Document:
    """The OpenAPI document of some routes, made at the first request for it."""

    def __init__(self, operations: Sequence[Operation], title: str) -> None:
        """`title` is the name of the service in the document."""
        self._make = functools.cache(functools.partial(_document, operations, title))
        self._first = asyncio.Lock()

    def content(self) -> dict[str, Any]:
        """Return the document; the first call takes a tenth of a second."""
        return self._make()

    async def answer(self, _: web.Request) -> web.Response:
        """Answer with the document."""
        async with self._first:
            return web.json_response(await asyncio.to_thread(self.content))


DOCUMENT = web.AppKey("openapi_document", Document)


class _Routes(dict[str, Any]):
    """Stands in for an application: aiohttp_apispec needs a router and a place for results."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        super().__init__()
        self.router = web.UrlDispatcher()
        for operation in operations:
            self.router.add_route(operation.method, operation.path, _described(operation))


def _document(operations: Sequence[Operation], title: str) -> dict[str, Any]:
    from aiohttp_apispec import setup_aiohttp_apispec  # noqa: PLC0415 - see the module

    routes = _Routes(operations)
    setup_aiohttp_apispec(
        cast("web.Application", routes),
        title=title,
        version=__version__,
        info={"description": _INTRODUCTION},
        url=None,
        in_place=True,
    )
    document: dict[str, Any] = routes["swagger_dict"]
    return document


def _described(operation: Operation) -> Handler:
    from aiohttp_apispec import docs, json_schema, response_schema  # noqa: PLC0415 - see the module

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
