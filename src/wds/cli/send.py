"""The sending side: sign bodies and post them, as any well-behaved sender of a source would.

A 503 or a broken connection leaves it unknown whether the event was stored. Bodies are
therefore sent with an idempotency key, and sent again under the same key.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from rich.console import Console
from tenacity import RetryError

from wds.cli.api_client import ComeBackError, patiently, progress
from wds.signing.scheme import EventInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wds.ingestion.sources import Source

CONNECTIONS = 16
_UNAVAILABLE = 503
_OURS = {"id", "events", "challenge", "error"}
"""Of these an ingest service's answer has one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the ingest service said: its status (0 if it never answered) and its JSON."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Posting:
    """One body to post, under a key that makes it safe to post again."""

    body: bytes
    key: str
    event_type: str | None = None


class Sender:
    """Posts bodies to one URL, signed as a source's provider does."""

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

    async def post_surely(self, posting: Posting) -> Answer:
        """Post until there is an answer other than 503, at most `TRIES` times."""

        async def once() -> Answer:
            answer = await self.post(posting)
            if answer.status == _UNAVAILABLE:
                msg = "the service answers 503"
                raise ComeBackError(msg)
            return answer

        try:
            return await patiently()(once)
        except RetryError as error:
            cause = error.last_attempt.exception()
            text = str(cause) or type(cause).__name__
            return Answer(0, {"error": {"code": "unreachable", "message": text, "details": []}})


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        body = await response.json(content_type=None)
    except ValueError:
        body = None
    if isinstance(body, dict) and not _OURS.isdisjoint(body):
        return body
    text = f"HTTP {response.status} with another answer: is this a wds ingest service?"
    return {"error": {"code": "not_wds", "message": text, "details": []}}


async def send(url: str, source: Source, postings: Iterable[Posting], total: int) -> int:
    """Post everything with a progress bar and a closing line; return the exit status.

    0 if every event was accepted or already there, else 1.
    """
    console = Console(stderr=True)
    bar = progress("sending", console)
    waiting = iter(postings)
    answers: list[Answer] = []
    timeout = aiohttp.ClientTimeout(total=30)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        sender = Sender(session, url, source)
        with bar:
            task = bar.add_task("sending", total=total)

            async def work() -> None:
                for posting in waiting:
                    answers.append(await sender.post_surely(posting))
                    bar.advance(task)

            async with asyncio.TaskGroup() as group:
                for _ in range(min(CONNECTIONS, total)):
                    group.create_task(work())
    return _report(answers)


def _report(answers: list[Answer]) -> int:
    refused = [answer for answer in answers if not _is_taken(answer)]
    stored = sum(_is_taken(answer) and answer.status == 202 for answer in answers)  # noqa: PLR2004
    repeated = len(answers) - len(refused) - stored
    if len(answers) == 1 and not refused:
        print(answers[0].body.get("id") or answers[0].body.get("challenge"))
    else:
        print(f"{stored} stored, {repeated} repeated, {len(refused)} refused")
    for text, count in _reasons(refused).items():
        print(f"{count} x {text}", file=sys.stderr)
    return 1 if refused else 0


def _is_taken(answer: Answer) -> bool:
    return answer.status in (200, 202) and "error" not in answer.body


def _reasons(refused: Iterable[Answer]) -> Mapping[str, int]:
    reasons: dict[str, int] = {}
    for answer in refused:
        error = answer.body.get("error", {})
        text = f"{answer.status} {error.get('code')}: {error.get('message')}"
        reasons[text] = reasons.get(text, 0) + 1
    return reasons
