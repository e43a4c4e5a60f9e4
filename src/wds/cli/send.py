"""`python -m wds send`: sign bodies and post them, as the provider of a source does.

After a 503 or a broken connection it is unknown whether the event was stored. Bodies are therefore
sent with an idempotency key, and repeated with the same key.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from rich.console import Console

from wds.cli import configuration, sample_events
from wds.cli.http_retries import TRANSIENT_ERRORS, UnavailableError, with_retries
from wds.cli.progress import progress_bar
from wds.domain.errors import StartError
from wds.ingestion import sources
from wds.signing.scheme import EventInfo

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator, Mapping

    from wds.config import Settings
    from wds.ingestion.sources import Source

CONNECTIONS = 16
_UNAVAILABLE = 503
_MEMBERS = {"id", "events", "challenge", "error"}
"""Every JSON answer of an ingest service has one of these."""


@dataclass(frozen=True, slots=True)
class Posting:
    """One body to post, and the idempotency key that makes it safe to repeat."""

    body: bytes
    key: str
    event_type: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The ingest service's answer: its status, 0 if it never answered, and its JSON."""

    status: int
    body: dict[str, Any]

    @property
    def is_success(self) -> bool:
        """Whether the event is stored, now or from before, or the challenge answered."""
        return self.status in (200, 202) and "error" not in self.body


class Sender:
    """Posts bodies to one URL, signed as the source's provider signs them."""

    def __init__(self, session: aiohttp.ClientSession, url: str, source: Source) -> None:
        """`url` is the source's ingest route; its newest secret signs."""
        self._session = session
        self._url = url
        self._source = source

    async def post(self, posting: Posting, *, path: str = "", forge: bool = False) -> Answer:
        """Sign and post once; `path` is appended to the URL, `forge` signs another body."""
        event = EventInfo(posting.key, posting.event_type, int(time.time()))
        signed = posting.body + b" " if forge else posting.body
        headers = {
            "Content-Type": "application/json",
            **self._source.scheme.sign(self._source.keys[0], signed, event),
        }
        async with self._session.post(
            self._url + path, data=posting.body, headers=headers
        ) as response:
            return Answer(response.status, await _json(response))

    async def post_with_retries(self, posting: Posting) -> Answer:
        """Post until an answer other than 503 comes; status 0 if none does."""

        async def request() -> Answer:
            answer = await self.post(posting)
            if answer.status == _UNAVAILABLE:
                msg = "the service answers 503"
                raise UnavailableError(msg)
            return answer

        try:
            return await with_retries(request)
        except TRANSIENT_ERRORS as error:
            text = str(error) or type(error).__name__
            return Answer(0, {"error": {"code": "unreachable", "message": text, "details": []}})


def run(arguments: Namespace, environ: Mapping[str, str]) -> int:
    """Post a body or samples; return the exit status: 0 if all were accepted, else 1.

    Raises:
        StartError: a setting is malformed, the source unknown or without a key that can sign, or
            the file unreadable.
    """
    settings, source = _source(arguments.source, environ)
    is_default = source.name == sources.DEFAULT_SOURCE
    path = "/webhooks/ingest" if is_default else f"/webhooks/ingest/{source.name}"
    url = arguments.url or f"http://{settings.host}:{settings.port}{path}"
    if arguments.count is not None:
        seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
        postings = _samples(arguments.count, seed, source.scheme.name)
    else:
        key = arguments.idempotency_key or secrets.token_hex(16)
        postings = iter([Posting(_read(arguments.file), key, arguments.event_type)])
    try:
        source.scheme.sign(source.keys[0], b"", EventInfo("", None, 0))
    except ValueError as error:
        msg = f"source {source.name}: {error}"
        raise StartError(msg) from None
    return asyncio.run(send(url, source, postings, total=arguments.count or 1))


async def send(url: str, source: Source, postings: Iterable[Posting], total: int) -> int:
    """Post everything with a progress bar and a closing line; return the exit status.

    0 if every event was accepted or stored before, else 1.
    """
    bar = progress_bar("sending", Console(stderr=True))
    remaining = iter(postings)
    answers: list[Answer] = []
    timeout = aiohttp.ClientTimeout(total=30)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        sender = Sender(session, url, source)
        with bar:
            task = bar.add_task("sending", total=total)

            async def work() -> None:
                for posting in remaining:
                    answers.append(await sender.post_with_retries(posting))
                    bar.advance(task)

            async with asyncio.TaskGroup() as group:
                for _ in range(min(CONNECTIONS, total)):
                    group.create_task(work())
    return _report(answers)


def _source(name: str, environ: Mapping[str, str]) -> tuple[Settings, Source]:
    """Return the settings and the source with this name.

    Raises:
        StartError: a setting is malformed, or no source has this name.
    """
    is_default = name == sources.DEFAULT_SOURCE
    require = ("WDS_HMAC_SECRET",) if is_default else ()
    settings, configured = configuration.load(environ, require=require)
    source = sources.default_source(settings.hmac_secrets) if is_default else configured.get(name)
    if source is None:
        known = ", ".join([sources.DEFAULT_SOURCE, *configured])
        file = configuration.sources_file(environ)
        msg = f"there is no source {name}; {file} and WDS_HMAC_SECRET define {known}"
        raise StartError(msg)
    return settings, source


def _samples(count: int, seed: int, provider: str) -> Iterator[Posting]:
    for number, sample in enumerate(sample_events.generate(count, seed, provider)):
        yield Posting(sample.body, f"sample-{seed}-{number}", sample.event_type)


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        msg = f"cannot read {file}: {error.strerror}"
        raise StartError(msg) from error


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        body = await response.json(content_type=None)
    except ValueError:
        body = None
    if isinstance(body, dict) and not _MEMBERS.isdisjoint(body):
        return body
    text = f"HTTP {response.status} with another answer: is this a wds ingest service?"
    return {"error": {"code": "not_wds", "message": text, "details": []}}


def _report(answers: list[Answer]) -> int:
    refused = [answer for answer in answers if not answer.is_success]
    stored = sum(answer.is_success and answer.status == 202 for answer in answers)  # noqa: PLR2004
    repeated = len(answers) - len(refused) - stored
    if len(answers) == 1 and not refused:
        print(answers[0].body.get("id") or answers[0].body.get("challenge"))
    else:
        print(f"{stored} stored, {repeated} repeated, {len(refused)} refused")
    for text, count in _reasons(refused).items():
        print(f"{count} x {text}", file=sys.stderr)
    return 1 if refused else 0


def _reasons(refused: Iterable[Answer]) -> Mapping[str, int]:
    reasons: dict[str, int] = {}
    for answer in refused:
        error = answer.body.get("error", {})
        text = f"{answer.status} {error.get('code')}: {error.get('message')}"
        reasons[text] = reasons.get(text, 0) + 1
    return reasons
