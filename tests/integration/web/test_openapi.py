"""The OpenAPI documents match the routes of both services, and Swagger UI shows them."""

from __future__ import annotations

import re

import aiohttp
import pytest

from wds import mock_downstream
from wds.ingest import create_app
from wds.web.server import listening

SERVICES = ["ingest", "mock"]


@pytest.fixture
def make_app(settings, store, db):  # noqa: ARG001 - `db` drops the database
    """Return a function that creates the application of a service."""

    def make(service):
        if service == "ingest":
            return create_app(settings, store)
        return mock_downstream.create_app()

    return make


@pytest.fixture(params=SERVICES)
async def service(request, make_app):
    """Serve each service; yield its application and a function that gets a path."""
    app = make_app(request.param)
    async with listening(app, "127.0.0.1", 0) as port, aiohttp.ClientSession() as session:

        async def get(path):
            async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                return response.status, response.content_type, await response.read()

        async def document():
            async with session.get(f"http://127.0.0.1:{port}/docs/openapi.json") as response:
                return await response.json()

        get.document = document
        yield app, get


def routes(app):
    """Return (method, path) of the API's routes: no documents, no pages, no HEADs of GETs."""
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.method != "HEAD"
        and route.resource.canonical != "/"
        and not route.resource.canonical.startswith(("/docs", "/console"))
    }


def operations(document):
    """Return the description of each (method, path)."""
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def references(node):
    """Yield every `$ref` under `node`."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


async def test_openapi_has_every_route_and_no_other(service):
    app, get = service
    documented = set(operations(await get.document()))

    assert len(documented) >= 5
    assert documented == routes(app)


async def test_openapi_operation_has_a_success_answer(service):
    _, get = service
    answers = {
        route: [status for status in operation["responses"] if status.startswith("2")]
        for route, operation in operations(await get.document()).items()
    }

    assert answers
    assert all(answers.values()), answers


async def test_openapi_operation_has_a_summary_of_its_own(service):
    _, get = service
    summaries = [each["summary"] for each in operations(await get.document()).values()]

    assert all(summaries)
    assert len(set(summaries)) == len(summaries)


async def test_openapi_references_resolve(service):
    _, get = service
    document = await get.document()
    wanted = set(references(document))

    assert wanted
    assert wanted <= {f"#/definitions/{name}" for name in document["definitions"]}


async def test_openapi_has_every_path_parameter(service):
    _, get = service

    for (_, path), operation in operations(await get.document()).items():
        declared = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path))


async def test_docs_page_is_swagger_ui_without_foreign_files(service):
    _, get = service
    status, kind, page = await get("/docs")
    files = re.findall(r'(?:src|rel="stylesheet" [^>]*href)="([^"]+)"', page.decode())
    contents = {}
    for file in files:
        status_of_file, _, contents[file] = await get(file)
        assert (status_of_file, bool(contents[file])) == (200, True), file

    assert (status, kind) == (200, "text/html")
    names = {file.partition("?")[0].rpartition("/")[2] for file in files}
    assert names >= {"swagger-ui.css", "swagger-ui-bundle.js"}
    # Started by the page itself, or by a script beside it.
    [started] = [each for each in (page, *contents.values()) if b"SwaggerUIBundle({" in each]
    assert b'url: "/docs/openapi.json"' in started


@pytest.mark.parametrize("name", SERVICES)
async def test_openapi_is_the_same_in_a_second_application(make_app, name):
    documents = []
    for app in (make_app(name), make_app(name)):
        async with listening(app, "127.0.0.1", 0) as port, aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/docs/openapi.json"
            async with session.get(url) as response:
                documents.append(await response.json())

    assert documents[0] == documents[1]
    assert operations(documents[1])


async def test_openapi_has_the_signature_headers_and_errors(make_app):
    async with (
        listening(make_app("ingest"), "127.0.0.1", 0) as port,
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/docs/openapi.json") as response,
    ):
        ingest = operations(await response.json())["POST", "/webhooks/ingest"]
    headers = {each["name"] for each in ingest["parameters"] if each["in"] == "header"}

    assert headers >= {"X-Webhook-Signature", "X-Hub-Signature-256", "Idempotency-Key"}
    assert set(ingest["responses"]) == {
        *("200", "202"),
        *("400", "401", "408", "409", "413", "415", "422", "503"),
    }
