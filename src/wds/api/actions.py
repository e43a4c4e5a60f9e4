"""The operators' routes that change events: replay and cancel, one event or all that match.

Every request has an id, the caller's or a new one, under which it may be repeated: what it did
is not done again, and the answer says so.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import structlog

from wds.api import action_schemas, event_schemas
from wds.api.events import instant
from wds.domain.errors import Detail, Refusal, StoreUnavailableError
from wds.domain.operator_actions import Action, Instruction, is_request_id
from wds.ingestion.payload import parse_request
from wds.storage import action_queries, event_queries
from wds.storage.bulk_actions import Verdict, matching
from wds.telemetry import event_log
from wds.web import schemas
from wds.web.error_envelope import json_answer
from wds.web.openapi import Operation, header

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import marshmallow as ma
    from aiohttp import web

    from wds.config import Settings
    from wds.storage.bulk_actions import Changed
    from wds.storage.lease_queries import Document
    from wds.storage.store import Store

log = structlog.get_logger(__name__)

REFUSED: Mapping[Verdict, tuple[str, str]] = {
    Verdict.LEASED: ("in_delivery", "an attempt is under way; replay it when that is over"),
    Verdict.WAITING: ("already_waiting", "it waits for an attempt, with the whole schedule ahead"),
    Verdict.FINAL: ("already_final", "the event is final; there is nothing to cancel"),
    Verdict.CANCELLING: ("already_cancelled", "it ends with the attempt that is under way"),
    Verdict.CONFLICT: (
        "idempotency_conflict",
        "this request id belongs to another action on the event; use another one",
    ),
    Verdict.FULL: ("no_room", "its payload and past attempts leave no room for further ones"),
}
"""Verdict -> code and message of the 409."""


class Operate:
    """Handlers over one store; `wake` is called when a bulk action was written down."""

    def __init__(self, settings: Settings, store: Store, wake: Callable[[], None]) -> None:
        """Take the store to change."""
        self._store = store
        self._wake = wake
        # Half of the limit is left to what arrives meanwhile.
        self.per_second = settings.rate_limit / 2 or None

    async def replay(self, request: web.Request) -> web.Response:
        """Deliver an event again, with the full retry schedule.

        It is due at once. Its earlier attempts stay on record, and who asked and when is added to
        its `history`. A final event is replayed whatever its outcome; one that waits after a
        failure is tried now. One that is being delivered just now is left alone: 409.
        """
        return await self._one(request, Action.REPLAY)

    async def cancel(self, request: web.Request) -> web.Response:
        """Stop retrying an event.

        It ends as FAILED_PERMANENTLY; a replay of a delivered event that was not attempted yet
        goes back to DELIVERED. If an attempt is under way that is not cut short (`cancelling`):
        the event ends with its outcome.
        """
        return await self._one(request, Action.CANCEL)

    async def _one(self, request: web.Request, action: Action) -> web.Response:
        given = await _load(request, action_schemas.InstructionSchema())
        instruction = _instruction(request, action, given)
        changed = await self.change(request.match_info["id"], instruction)
        repeated = changed.verdict is Verdict.REPEATED
        answer = {
            "id": changed.event["_id"],
            "status": changed.event["status"],
            "request_id": instruction.request_id,
            "repeated": repeated,
            "cancelling": "cancelling" in changed.event,
        }
        return json_answer(answer, 200 if repeated else 202)

    async def change(self, event_id: str, instruction: Instruction) -> Changed:
        """Carry out an instruction on one event.

        Raises:
            Refusal: 404 if there is no such event, 409 if there is nothing to do.
        """
        changed = await self._store.bulk_actions.one(event_id, instruction)
        if changed is None:
            raise Refusal(404, "not_found", "no event has this id")
        if changed.verdict in REFUSED:
            raise Refusal(409, *REFUSED[changed.verdict])
        if changed.verdict is not Verdict.REPEATED:
            event_log.changed(event_id, instruction)
        return changed

    async def replay_all(self, request: web.Request) -> web.Response:
        """Replay every event that matches, oldest first, in the background.

        The answer is the bulk action; ask for it again under its `request_id` to see how far it
        is. It survives the death of any process. Events never attempted or being delivered just
        now are left alone, and so is whatever arrives after the request. With `dry_run`, nothing
        is done and the answer says how many are meant.
        """
        return await self._bulk(request, Action.REPLAY, action_schemas.BulkReplayRequestSchema())

    async def cancel_all(self, request: web.Request) -> web.Response:
        """Stop retrying every event that matches, in the background, like a bulk replay."""
        return await self._bulk(request, Action.CANCEL, action_schemas.BulkRequestSchema())

    async def _bulk(self, request: web.Request, action: Action, schema: ma.Schema) -> web.Response:
        body = parse_request(await request.read() or b"{}")
        given = schemas.load(schema, body)
        wanted = filters_json(body)
        if given["dry_run"]:
            by_status = await self.meant(action, wanted)
            matched = sum(by_status.values())
            return json_answer(
                {"action": action, "dry_run": True, "matched": matched, "by_status": by_status}
            )
        begun, new = await self.begin(
            _instruction(request, action, given),
            wanted,
            limit=given.get("limit"),
            per_second=given.get("per_second", self.per_second),
        )
        return json_answer(bulk_json(begun), 202 if new else 200)

    async def meant(self, action: Action, wanted: str) -> dict[str, int]:
        """Count the events that a bulk action would be about now, by status.

        `wanted` is from `filters_json`.
        """
        now = await self._store.now()
        events = matching(action, wanted, now)
        if events is None:
            return {}
        chosen = event_schemas.filters_of(
            schemas.load(event_schemas.FilterSchema(), json.loads(wanted))
        )
        if chosen.keys() <= event_queries.KEPT:
            statuses = set(chosen.get("status", action_queries.AFFECTED[action]))
            chosen["status"] = sorted(statuses & set(action_queries.AFFECTED[action]))
            chosen["to"] = min(chosen.get("to", now), now)
            counts = await self._store.rollups.counts(event_queries.match(**chosen))
        else:
            counts = await self._store.reader.counts(events)
        return {each["_id"]: each["count"] for each in counts["by_status"]}

    async def _matched(self, action: Action, wanted: str) -> int | None:
        """Count likewise; None where counting takes too long, which must not hold the rest up."""
        try:
            return sum((await self.meant(action, wanted)).values())
        except StoreUnavailableError as error:
            log.warning("bulk_action_not_counted", cause=str(error))
            return None

    async def begin(
        self, instruction: Instruction, wanted: str, *, limit: int | None, per_second: float | None
    ) -> tuple[Document, bool]:
        """Write a bulk action down and wake the worker; `wanted` is from `filters_json`.

        Returns it and True; if its request id is known, the one that was begun before and False.

        Raises:
            Refusal: 409 if that one is about something else.
        """
        action = instruction.action
        if action is not Action.REPLAY:
            per_second = None
        known = await self._store.bulk_actions.get(instruction.request_id)
        new = False
        if known is None:
            known, new = await self._store.bulk_actions.start(
                instruction,
                wanted=wanted,
                limit=limit,
                per_second=per_second,
                matched=await self._matched(action, wanted),
            )
        asked = {"action": action, "filters": wanted, "limit": limit, "per_second": per_second}
        if {name: known[name] for name in asked} != asked:
            raise Refusal(
                409,
                "idempotency_conflict",
                "this request id belongs to another bulk action",
                (Detail("request_id", "use another one, or send the same request"),),
            )
        if new:
            facts = {name: known[name] for name in ("action", "by", "remote", "matched")}
            event_log.bulk_action_begun(request_id=known["_id"], **facts)
        self._wake()
        return known, new

    async def bulk(self, request: web.Request) -> web.Response:
        """Show a bulk action and how far it is."""
        return json_answer(
            bulk_json(_found(await self._store.bulk_actions.get(_request_id(request))))
        )

    async def bulks(self, _request: web.Request) -> web.Response:
        """List the latest bulk actions, newest first."""
        found = await self._store.bulk_actions.recent()
        return json_answer({"bulk_actions": [bulk_json(each) for each in found]})

    async def stop(self, request: web.Request) -> web.Response:
        """Stop a bulk action after the chunk under way; what it has changed stays so."""
        return json_answer(bulk_json(await self.end(request)))

    async def end(self, request: web.Request) -> Document:
        """Stop the bulk action that a request's path names, and return it.

        Raises:
            Refusal: 404 if there is none.
        """
        stopped, asked = await self._store.bulk_actions.stop(_request_id(request))
        found = _found(stopped)
        if asked:
            event_log.bulk_action_stopped(
                request_id=found["_id"], action=found["action"], remote=_remote(request)
            )
        return found


_FILTERS = [
    field.data_key or name
    for name, field in event_schemas.FilterSchema._declared_fields.items()  # noqa: SLF001 - has no other way
]


def filters_json(body: Mapping[str, Any]) -> str:
    """Return the filters of a request as the JSON text that is kept with a bulk action."""
    return json.dumps({name: body[name] for name in _FILTERS if name in body}, sort_keys=True)


async def _load(request: web.Request, schema: ma.Schema) -> dict[str, Any]:
    return schemas.load(schema, parse_request(await request.read() or b"{}"))


def _instruction(request: web.Request, action: Action, given: Mapping[str, Any]) -> Instruction:
    request_id = given.get("request_id", request.headers.get("Idempotency-Key"))
    if request_id is None:
        request_id = secrets.token_hex(16)
    if not is_request_id(request_id):
        said = "must be 1 to 255 printable characters, and neither . nor .."
        problem = Detail("Idempotency-Key", said)
        raise Refusal(422, "invalid_request", "the request has the wrong shape", (problem,))
    remote = _remote(request)
    return Instruction(action, request_id, given.get("by", remote), remote, given.get("reason"))


def _remote(request: web.Request) -> str:
    return request.remote or "unknown"


def _request_id(request: web.Request) -> str:
    return request.match_info["request_id"]


def _found(document: Document | None) -> Document:
    if document is None:
        raise Refusal(404, "not_found", "no bulk action has this request id")
    return document


def bulk_json(document: Document) -> dict[str, Any]:
    """Return a bulk action as it is shown to operators."""
    as_it_is = ("action", "state", "by", "remote", "reason", "limit", "per_second", "matched")
    return {
        "request_id": document["_id"],
        **{name: document[name] for name in as_it_is},
        "examined": document["examined"],
        "changed": document["changed"],
        "skipped": document["examined"] - document["changed"],
        "stop_requested": document.get("stop_requested", False),
        "failure": document.get("failure"),
        "filters": json.loads(document["filters"]),
        "started_at": instant(document["started_at"]),
        "finished_at": instant(document.get("finished_at")),
    }


_KEY = header("Idempotency-Key", "Makes the request repeatable, unless the body has a request_id")
_GUARDED = (401, 403, 429, 503)


def operations(operate: Operate) -> list[Operation]:
    """Return the routes that change events."""

    def one(action: str, handler: Callable[[web.Request], Awaitable[web.Response]]) -> Operation:
        return Operation(
            "POST",
            f"/webhooks/events/{{id}}/{action}",
            handler,
            f"{action.capitalize()} an event",
            "operate",
            {
                202: ("Done", action_schemas.ChangedSchema),
                200: ("Done before, under this request id", action_schemas.ChangedSchema),
            },
            (400, 404, 409, 413, 422, *_GUARDED),
            body=action_schemas.InstructionSchema,
            parameters=(_KEY,),
        )

    def many(
        action: str,
        handler: Callable[[web.Request], Awaitable[web.Response]],
        body: type[ma.Schema],
    ) -> Operation:
        return Operation(
            "POST",
            f"/webhooks/{action}",
            handler,
            f"{action.capitalize()} all events that match",
            "operate",
            {
                202: ("Begun", action_schemas.BulkSchema),
                200: ("Begun before; or what a dry run counted", action_schemas.BulkAnswerSchema),
            },
            (400, 409, 413, 422, *_GUARDED),
            body=body,
            parameters=(_KEY,),
        )

    bulk = "/webhooks/bulk"
    one_bulk = f"{bulk}/{{request_id:[^/]+}}"  # any label, braces too
    shown = {200: ("The bulk action", action_schemas.BulkSchema)}
    return [
        one("replay", operate.replay),
        one("cancel", operate.cancel),
        many("replay", operate.replay_all, action_schemas.BulkReplayRequestSchema),
        many("cancel", operate.cancel_all, action_schemas.BulkRequestSchema),
        Operation(
            "GET",
            bulk,
            operate.bulks,
            "List bulk actions",
            "operate",
            {200: ("The latest", action_schemas.BulkListSchema)},
            _GUARDED,
        ),
        Operation(
            "GET",
            one_bulk,
            operate.bulk,
            "Show a bulk action",
            "operate",
            shown,
            (404, *_GUARDED),
        ),
        Operation(
            "POST",
            f"{one_bulk}/stop",
            operate.stop,
            "Stop a bulk action",
            "operate",
            shown,
            (404, *_GUARDED),
        ),
    ]
