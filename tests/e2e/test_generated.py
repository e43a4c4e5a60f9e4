"""Generated requests against the OpenAPI documents of both services.

schemathesis generates requests that a document allows and requests that it does not. Every request
must be answered within 5 s, without a 5xx, and with a status, content type, headers and body that
the document has. At the end, the store must hold exactly the acknowledged events, and the log one
line for each refusal, without anything that was sent. `make test-generated` sends thousands.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import threading
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from pymongo import MongoClient
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e import processes
from wds.domain.events import is_label
from wds.ingestion import sources
from wds.signing.scheme import EventInfo

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "wds.example.toml").read_text()
SOURCES = {**sources.load(EXAMPLE, {}, "x"), "default": sources.default_source(("test-secret",))}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = int(os.environ.get("EXAMPLES", "8"))
"""Requests for each operation and mode."""
MARKER = "mark-of-the-sender"


@dataclass
class Service:
    """One running service and its answers so far."""

    url: str
    process: processes.Process
    answers: Counter[int] = field(default_factory=Counter)
    acknowledged: set[str] = field(default_factory=set)
    session: requests.Session = field(default_factory=requests.Session)

    def send(self, case, *, sign_as=None):
        """Send a case, signed if `sign_as` names a source; return the response."""
        request = requests.Request(**case.as_transport_kwargs(base_url=self.url)).prepare()
        request.headers["X-Request-Id"] = MARKER
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        if sign_as is not None:
            source = SOURCES[sign_as]
            request.headers.pop("X-Hub-Signature-256", None)
            key = request.headers.get("Idempotency-Key")
            event = EventInfo(secrets.token_hex(8), "generated", int(time.time()))
            request.headers.update(source.scheme.sign(source.keys[0], body, event))
            if key is not None:
                request.headers["Idempotency-Key"] = key
        return self.witness(self.session.send(request, timeout=5))

    def witness(self, response):
        """Record a response."""
        self.answers[response.status_code] += 1
        if "/webhooks/ingest" in response.url and response.status_code in {200, 202}:
            answer = response.json()
            receipts = answer.get("events", [answer])
            self.acknowledged |= {each["id"] for each in receipts if "id" in each}
        return response


@pytest.fixture(scope="module")
def services(engines, tmp_path_factory):
    """Run both services as processes; yield them, the database and a way to run coroutines."""
    home = tmp_path_factory.mktemp("generated")
    (home / "wds.toml").write_text(EXAMPLE)
    env = engines.environ()

    async def start(stack):
        ingest = await stack.enter_async_context(processes.ingest(env, cwd=home))
        mock = await stack.enter_async_context(processes.mock(env, cwd=home))
        return {"ingest": Service(ingest.url, ingest), "mock": Service(mock.url, mock)}

    stack = AsyncExitStack()
    # A thread reads the output of the processes while the tests wait for answers.
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(awaitable):
        return asyncio.run_coroutine_threadsafe(awaitable, loop).result(60)

    with MongoClient(engines.mongo_url) as client:
        try:
            running = run(start(stack))
            yield running, client[env["WDS_MONGO_DB"]], run
            for service in running.values():
                service.session.close()
        finally:
            run(stack.aclose())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            client.drop_database(env["WDS_MONGO_DB"])


def operations(service):
    document = schemathesis.openapi.from_url(f"{service.url}/docs/openapi.json")
    return [each.ok() for each in document.get_all_operations()]


def generated(check, operation, mode):
    """Run `check` with `EXAMPLES` cases of `operation`."""
    run = given(case=operation.as_strategy(generation_mode=mode))(
        hypothesis_settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # report a case as it was found, without shrinking
            suppress_health_check=list(HealthCheck),
        )(check)
    )
    with suppress(Unsatisfiable):  # no invalid request exists for this operation
        run()


@pytest.mark.parametrize("name", ["ingest", "mock"])
@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
def test_openapi_has_every_answer_to_generated_requests(services, name, mode):
    running, _, _ = services
    service = running[name]
    tried = 0

    def checked_as(signer):
        def check(case):
            nonlocal tried
            tried += 1
            if "source" in (case.path_parameters or {}) and mode is GenerationMode.POSITIVE:
                case.path_parameters["source"] = signer
            response = service.send(case, sign_as=signer if tried % 3 else None)
            # The mock may have been told to fail by a request before.
            on_purpose = name == "mock" and response.text == '{"status": "failed on purpose"}'
            case.validate_response(response, checks=CHECKS[1:] if on_purpose else CHECKS)

        return check

    for operation in operations(service):
        signer = signer_of(operation.path) if name == "ingest" else None
        generated(checked_as(signer), operation, mode)
    assert tried >= EXAMPLES


def signer_of(path):
    if path == "/webhooks/ingest/{source}":
        return "standard"
    return "default" if path.startswith("/webhooks/ingest") else None


@pytest.mark.parametrize("path", ["/webhooks/search", "/webhooks/ingest", "/webhooks/ingest/batch"])
def test_openapi_valid_requests_are_accepted(services, path):
    """But for what JSON Schema has no words for: printable, a cursor of ours, one after another."""
    running, _, _ = services
    service = running["ingest"]
    [operation] = [each for each in operations(service) if each.path == path]

    tried = 0

    def check(case):
        nonlocal tried
        body = case.body if isinstance(case.body, dict) else {}
        assume("cursor" not in body and not {"from", "to"} <= set(body))
        assume(all(map(is_label, labels(body))))
        assume(is_label((case.headers or {}).get("Idempotency-Key", "k")))
        tried += 1
        response = service.send(case, sign_as=signer_of(path))
        case.validate_response(response, checks=[positive_data_acceptance])

    generated(check, operation, GenerationMode.POSITIVE)
    assert tried >= EXAMPLES


def labels(body):
    """Yield the names that a search filters by, and the keys of a payload or a batch."""
    for name in ("event_type", "source", "destination"):
        yield from body[name] if isinstance(body.get(name), list) else ()
    for event in body.get("events", [body]):
        if "idempotency_key" in event:
            yield event["idempotency_key"]


def test_openapi_examples_are_accepted_unchanged(services):
    """Swagger UI puts them into its forms."""
    running, _, _ = services
    tried = 0
    for service in running.values():
        document = service.session.get(f"{service.url}/docs/openapi.json").json()
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                for parameter in operation["parameters"]:
                    if parameter["in"] == "body":
                        name = parameter["schema"]["$ref"].rpartition("/")[2]
                        if "example" in document["definitions"][name]:
                            body = json.dumps(document["definitions"][name]["example"]).encode()
                            assert example_status(service, method, path, body) in {200, 202}, path
                            tried += 1
    assert tried >= 5


def example_status(service, method, path, body):
    signer = signer_of(path)
    headers = {"Content-Type": "application/json"}
    if signer is not None:
        source = SOURCES[signer]
        event = EventInfo(secrets.token_hex(8), None, int(time.time()))
        headers |= source.scheme.sign(source.keys[0], body, event)
        headers.pop("Idempotency-Key", None)
    url = service.url + path.replace("{source}", str(signer))
    response = service.session.request(method, url, data=body, headers=headers, timeout=5)
    return service.witness(response).status_code


def test_store_and_log_match_the_answers_after_generated_requests(services):
    running, db, run = services
    service = running["ingest"]
    run(service.process.stop())
    lines = [json.loads(line) for line in service.process.lines]
    refused = Counter(line["http_status"] for line in lines if line["event"] == "refused")
    known = {"event", "level", "timestamp", "route", "http_status", "code", "remote", "event_id"}

    assert refused == {status: n for status, n in service.answers.items() if status >= 400}
    assert all(set(line) <= known for line in lines if line["event"] == "refused")
    assert not [line for line in lines if line["level"] in {"error", "critical"}]
    assert MARKER not in service.process.text
    assert sum(refused.values()) > 50
    stored = db.events.count_documents({})
    assert stored > 0
