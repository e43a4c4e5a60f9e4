"""The forms that replay or cancel events: one event, or all that match a query.

Each form is on a page that describes the change. It carries a request id, so that a form
that is submitted twice does its work once. A bulk form also carries the exact filters by which its
page counted, with the range as instants.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from aiohttp import web

from wds.actions.service import VERDICT_MESSAGES
from wds.api import action_schemas, event_schemas
from wds.console import event_query
from wds.console.auth import read_form
from wds.console.events import find_event
from wds.console.paths import bulk_action_path, event_path
from wds.console.rendering import page
from wds.domain.errors import Detail, Refusal, StoreUnavailableError
from wds.domain.event_filter import filter_text
from wds.domain.operator_actions import Action, Instruction, obstacle
from wds.encoding import instant_text
from wds.web import schemas
from wds.web.json_body import parse_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime

    from wds.actions.service import ActionService
    from wds.storage.event_reader import EventReader
    from wds.storage.mongo import Document

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_NUMBERS = ("limit", "per_second")
_BULK_FIELDS = {
    Action.REPLAY: ("request_id", "limit", "per_second"),
    Action.CANCEL: ("request_id", "limit"),
}
_CORRECTABLE = {409, 422}
"""Statuses of refusals that are shown on the form, so that the user can change it."""


class ActionForms:
    """Handlers of the forms; they follow the same rules as the API's handlers."""

    def __init__(
        self, reader: EventReader, service: ActionService, now: Callable[[], Awaitable[datetime]]
    ) -> None:
        """Create the handlers; `service` does the work, `now` returns the database's time."""
        self._reader = reader
        self._service = service
        self._now = now

    # -- one event -----------------------------------------------------------------------------

    def show_one(self, action: Action) -> Handler:
        """Return a handler that shows the form for one event."""

        async def show(request: web.Request) -> web.StreamResponse:
            event = await find_event(self._reader, request)
            verdict = obstacle(action, event)
            context = _one_context(action, event, possible=verdict is None)
            if verdict is not None:
                context["obstacle"] = VERDICT_MESSAGES[verdict][1]
            return page(request, "confirm_one.html", context)

        return show

    def submit_one(self, action: Action) -> Handler:
        """Return a handler that acts on one event and redirects to its page."""

        async def submit(request: web.Request) -> web.StreamResponse:
            form = await read_form(request)
            try:
                loaded = schemas.load(
                    action_schemas.InstructionSchema(), _request_json(form, "request_id")
                )
                result = await self._service.apply(
                    request.match_info["id"], _instruction(request, action, loaded)
                )
            except Refusal as refusal:
                if refusal.status not in _CORRECTABLE:
                    raise
                event = await find_event(self._reader, request)
                possible = refusal.status != web.HTTPConflict.status_code
                context = _one_context(action, event, possible=possible)
                context.update(refusal=refusal, form=form)
                return page(request, "confirm_one.html", context, refusal.status)
            notice = "replayed" if action is Action.REPLAY else "cancelled"
            if action is Action.CANCEL and "cancelling" in result.event:
                notice = "cancelling"
            path = event_path(result.event["_id"])
            raise web.HTTPSeeOther(path + f"?notice={notice}")

        return submit

    # -- all that match ------------------------------------------------------------------------

    def show_bulk(self, action: Action) -> Handler:
        """Return a handler that counts what a query matches and shows the form."""

        async def show(request: web.Request) -> web.StreamResponse:
            query = event_query.parse(request.query.items())
            if query.problems:
                raise web.HTTPFound(query.url_with())
            now = await self._now()
            body = query.filter_json(now)
            # Events that arrive while the user decides were not on the page.
            body.setdefault("to", instant_text(now))
            return await self._bulk_page(request, action, body, {"back": query.url_with()})

        return show

    def submit_bulk(self, action: Action) -> Handler:
        """Return a handler that starts a bulk action and redirects to its page."""

        async def submit(request: web.Request) -> web.StreamResponse:
            form = await read_form(request)
            body = parse_request(form.get("filters", "").encode())
            try:
                if "sure" not in form:
                    raise _not_confirmed()
                schema = (
                    action_schemas.BulkReplayRequestSchema()
                    if action is Action.REPLAY
                    else action_schemas.BulkRequestSchema()
                )
                loaded = schemas.load(
                    schema, {**body, **_request_json(form, *_BULK_FIELDS[action])}
                )
                started, _ = await self._service.start_bulk_action(
                    _instruction(request, action, loaded),
                    filter_text(body),
                    limit=loaded.get("limit"),
                    per_second=loaded.get("per_second", self._service.default_per_second),
                )
            except Refusal as refusal:
                if refusal.status not in _CORRECTABLE:
                    raise
                return await self._bulk_page(request, action, body, form, refusal)
            raise web.HTTPSeeOther(bulk_action_path(started.request_id))

        return submit

    async def _bulk_page(
        self,
        request: web.Request,
        action: Action,
        body: Mapping[str, Any],
        form: Mapping[str, str],
        refusal: Refusal | None = None,
    ) -> web.Response:
        """Show the bulk form for the filters in `body`, filled in with `form`."""
        filters = filter_text(body)
        loaded = schemas.load(event_schemas.FilterSchema(), json.loads(filters))
        event_filter = event_schemas.filter_of(loaded)
        counts: dict[str, int] | None = None
        with suppress(StoreUnavailableError):  # It takes too long to count; the page says so.
            counts = await self._service.count_matching(action, event_filter)
        context = {
            "action": action,
            "filters": filters,
            "filter_pairs": filter_pairs(json.loads(filters)),
            "counts": counts,
            "total": None if counts is None else sum(counts.values()),
            "per_second": self._service.default_per_second,
            "request_id": secrets.token_hex(16),
            "form": form,
            "back_url": _back_url(form),
            "refusal": refusal,
            "problems": _problems_by_field(refusal),
        }
        status = 200 if refusal is None else refusal.status
        return page(request, "confirm_bulk.html", context, status)


def filter_pairs(filters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return each filter's name and value, from the JSON of a bulk action."""
    return [
        (name, str(each))
        for name, value in filters.items()
        for each in (value if isinstance(value, list) else [value])
    ]


def _one_context(action: Action, event: Document, *, possible: bool) -> dict[str, Any]:
    return {
        "action": action,
        "event": event,
        "possible": possible,
        "request_id": secrets.token_hex(16),
        "form": {},
        "obstacle": None,
        "refusal": None,
    }


def _request_json(form: Mapping[str, str], *names: str) -> dict[str, Any]:
    """Return the filled-in fields as JSON for the API. Text that is not a number stays text.

    The API's schema then refuses it.
    """
    body: dict[str, Any] = {}
    for name in (*names, "by", "reason"):
        text = form.get(name, "").strip()
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


def _back_url(form: Mapping[str, str]) -> str:
    """Return the URL of the list that a form came from, in the console for any value sent."""
    query_string = form.get("back", "").partition("?")[2]
    return event_query.parse(parse_qsl(query_string)).url_with()


def _not_confirmed() -> Refusal:
    problem = Detail("sure", "Tick the box to confirm.")
    return Refusal(422, "invalid_request", "nothing was done yet", (problem,))


def _problems_by_field(refusal: Refusal | None) -> dict[str, list[str]]:
    problems: dict[str, list[str]] = {}
    for detail in refusal.details if refusal else ():
        problems.setdefault(detail.field.split(".")[0], []).append(detail.message)
    return problems
