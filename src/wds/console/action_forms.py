"""What the console does to events, each after a page that says what is about to happen.

The page carries a request id, so a form that is sent twice does its work once. A bulk action is
about exactly the filters that the page counted: they travel with the form, with the range's
instants filled in.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from aiohttp import web

from wds.api import action_schemas
from wds.api.actions import REFUSED, bulk_json, filters_json
from wds.console import event_query
from wds.console.auth import HOME, form_of, page
from wds.console.events import address, can_cancel, can_replay
from wds.domain.errors import Detail, Refusal, StoreUnavailableError
from wds.domain.operator_actions import Action, Instruction
from wds.ingestion.payload import parse_request
from wds.web import schemas

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from wds.api.actions import Operate
    from wds.console.events import Console
    from wds.storage.mongo import Document
    from wds.storage.store import Store

    Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

ACTIONS = f"{HOME}/actions"
_NUMBERS = ("limit", "per_second")


class Confirm:
    """Handlers over one store, by the same rules as the API's."""

    def __init__(self, store: Store, console: Console, operate: Operate) -> None:
        """Take what reads and what changes."""
        self._store = store
        self._console = console
        self._operate = operate

    # -- one event -----------------------------------------------------------------------------

    def ask_one(self, action: Action) -> Answer:
        """Return a handler that asks whether to do this to one event."""

        async def ask(request: web.Request) -> web.StreamResponse:
            event = await self._console.found(request)
            possible = can_replay(event) if action is Action.REPLAY else can_cancel(event)
            return page(request, "confirm_one.html", _one(action, event, possible=possible))

        return ask

    def do_one(self, action: Action) -> Answer:
        """Return a handler that does it, and leads back to the event."""

        async def do(request: web.Request) -> web.StreamResponse:
            given = await form_of(request)
            try:
                loaded = schemas.load(action_schemas.InstructionSchema(), _of(given, "request_id"))
                changed = await self._operate.change(
                    request.match_info["id"], _instruction(request, action, loaded)
                )
            except Refusal as refusal:
                if refusal.status not in {409, 422}:
                    raise
                event = await self._console.found(request)
                context = _one(
                    action, event, possible=refusal.status != web.HTTPConflict.status_code
                )
                context.update(refusal=refusal, given=given)
                return page(request, "confirm_one.html", context, refusal.status)
            done = "replayed" if action is Action.REPLAY else "cancelled"
            if action is Action.CANCEL and "cancelling" in changed.event:
                done = "cancelling"
            raise web.HTTPSeeOther(address(changed.event["_id"]) + f"?notice={done}")

        return do

    # -- many ----------------------------------------------------------------------------------

    def ask_all(self, action: Action) -> Answer:
        """Return a handler that counts what a view's filters mean, and asks."""

        async def ask(request: web.Request) -> web.StreamResponse:
            asked = event_query.read(request.query.items())
            if asked.problems:
                raise web.HTTPFound(asked.link())
            now = await self._store.now()
            body = asked.body(now)
            # What arrives while somebody makes up their mind was not on the page.
            body.setdefault("to", event_query.exact(now))
            return await self._all_page(request, action, body, {"back": asked.link()})

        return ask

    def do_all(self, action: Action) -> Answer:
        """Return a handler that begins a bulk action, and leads to its progress."""

        async def do(request: web.Request) -> web.StreamResponse:
            given = await form_of(request)
            body = parse_request(given.get("filters", "").encode())
            try:
                if "sure" not in given:
                    raise _unsure()
                schema = (
                    action_schemas.BulkReplayRequestSchema()
                    if action is Action.REPLAY
                    else action_schemas.BulkRequestSchema()
                )
                loaded = schemas.load(schema, {**body, **_of(given, "request_id", *_MORE[action])})
                begun, _ = await self._operate.begin(
                    _instruction(request, action, loaded),
                    filters_json(body),
                    limit=loaded.get("limit"),
                    per_second=loaded.get("per_second", self._operate.per_second),
                )
            except Refusal as refusal:
                if refusal.status not in {409, 422}:
                    raise
                return await self._all_page(request, action, body, given, refusal)
            raise web.HTTPSeeOther(_address(begun))

        return do

    async def _all_page(
        self,
        request: web.Request,
        action: Action,
        body: Mapping[str, Any],
        given: Mapping[str, str],
        refusal: Refusal | None = None,
    ) -> web.Response:
        wanted = filters_json(body)
        meant: dict[str, int] | None = None
        with suppress(StoreUnavailableError):  # counting takes too long: the page says so
            meant = await self._operate.meant(action, wanted)
        context = {
            "action": action,
            "filters": wanted,
            "chips": _chips(json.loads(wanted)),
            "meant": meant,
            "total": None if meant is None else sum(meant.values()),
            "per_second": self._operate.per_second,
            "request_id": secrets.token_hex(16),
            "given": given,
            "back": _back(given),
            "refusal": refusal,
            "problems_of": _problems(refusal),
        }
        status = 200 if refusal is None else refusal.status
        return page(request, "confirm_all.html", context, status)

    # -- bulk actions --------------------------------------------------------------------------

    async def actions(self, request: web.Request) -> web.StreamResponse:
        """List the latest bulk actions."""
        found = await self._store.bulk_actions.recent()
        now = await self._store.now()
        return page(request, "actions.html", {"bulks": [_bulk(each) for each in found], "now": now})

    async def action(self, request: web.Request) -> web.StreamResponse:
        """Show a bulk action and how far it is."""
        found = await self._store.bulk_actions.get(request.match_info["request_id"])
        if found is None:
            raise Refusal(404, "not_found", "no bulk action has this request id")
        bulk = _bulk(found)
        context = {"bulk": bulk, "chips": _chips(bulk["filters"]), "now": await self._store.now()}
        return page(request, "action.html", context)

    async def stop(self, request: web.Request) -> web.StreamResponse:
        """Stop a bulk action after the chunk under way, and lead back to it."""
        raise web.HTTPSeeOther(_address(await self._operate.end(request)))


_MORE = {Action.REPLAY: ("limit", "per_second"), Action.CANCEL: ("limit",)}


def _one(action: Action, event: Document, *, possible: bool) -> dict[str, Any]:
    return {
        "action": action,
        "event": event,
        "possible": possible,
        "request_id": secrets.token_hex(16),
        "given": {},
        "refusal": None,
        "already": REFUSED,
    }


def _of(given: Mapping[str, str], *names: str) -> dict[str, Any]:
    """Return the filled-in fields of a form as the API takes them; what is no number stays text."""
    body: dict[str, Any] = {}
    for name in (*names, "by", "reason"):
        text = given.get(name, "").strip()
        if not text:
            continue
        body[name] = text
        if name in _NUMBERS and text.isascii() and text.replace(".", "", 1).isdigit():
            body[name] = float(text) if "." in text else int(text[:12])
    return body


def _instruction(request: web.Request, action: Action, loaded: Mapping[str, Any]) -> Instruction:
    remote = request.remote or "unknown"
    return Instruction(
        action,
        loaded.get("request_id") or secrets.token_hex(16),
        loaded.get("by", remote),
        remote,
        loaded.get("reason"),
    )


def _back(given: Mapping[str, str]) -> str:
    """Return the address of the view that a form came from: the console's, whatever it says."""
    return event_query.read(parse_qsl(given.get("back", "").partition("?")[2])).link()


def _unsure() -> Refusal:
    problem = Detail("sure", "Tick the box to go on.")
    return Refusal(422, "invalid_request", "nothing was done yet", (problem,))


def _problems(refusal: Refusal | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for detail in refusal.details if refusal else ():
        found.setdefault(detail.field.split(".")[0], []).append(detail.message)
    return found


def _chips(wanted: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, str(each))
        for name, value in wanted.items()
        for each in (value if isinstance(value, list) else [value])
    ]


def _bulk(document: Document) -> dict[str, Any]:
    shown = bulk_json(document)
    shown.update(started_at=document["started_at"], finished_at=document.get("finished_at"))
    bounds = [each for each in (shown["limit"], shown["matched"]) if each is not None]
    return {**shown, "address": _address(document), "most": min(bounds, default=None)}


def _address(document: Document) -> str:
    return f"{ACTIONS}/{quote(document['_id'], safe='')}"
