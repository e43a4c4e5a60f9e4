"""The operators' routes that change events: replay and cancel, one event or all that match.

Every request has an id, the caller's or a new one. A repeated request under the same id does
nothing twice, and the answer says so.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

from wds.api import action_schemas, event_schemas
from wds.domain.errors import Detail, Refusal
from wds.domain.event_filter import filter_text
from wds.domain.operator_actions import Action, Instruction, Verdict, is_request_id
from wds.encoding import instant_text
from wds.web import schemas
from wds.web.error_envelope import json_answer
from wds.web.json_body import parse_request
from wds.web.openapi import Operation, header

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import marshmallow as ma
    from aiohttp import web

    from wds.actions.service import ActionService
    from wds.domain.operator_actions import BulkAction


class ActionHandlers:
    """Handlers of the routes; `ActionService` does the work."""

    def __init__(self, service: ActionService) -> None:
        """Answer requests by `service`."""
        self._service = service

    async def replay(self, request: web.Request) -> web.Response:
        """Deliver an event again, with the full retry schedule.

        It is due at once. Its earlier attempts are kept, and the operator and the time are added to
        its `history`. A final event is replayed, delivered or not; one that waits after a failure
        is tried now. An event that is being delivered is not changed: 409.
        """
        return await self._change_one(request, Action.REPLAY)

    async def cancel(self, request: web.Request) -> web.Response:
        """Stop retrying an event.

        It ends as FAILED_PERMANENTLY, or as DELIVERED if it was delivered, then replayed and not
        attempted since. An attempt under way is not interrupted (`cancelling`): the event ends with
        it.
        """
        return await self._change_one(request, Action.CANCEL)

    async def _change_one(self, request: web.Request, action: Action) -> web.Response:
        body = parse_request(await request.read() or b"{}")
        loaded = schemas.load(action_schemas.InstructionSchema(), body)
        instruction = _instruction(request, action, loaded)
        result = await self._service.apply(request.match_info["id"], instruction)
        repeated = result.verdict is Verdict.REPEATED
        answer = {
            "id": result.event["_id"],
            "status": result.event["status"],
            "request_id": instruction.request_id,
            "repeated": repeated,
            "cancelling": "cancelling" in result.event,
        }
        return json_answer(answer, 200 if repeated else 202)

    async def replay_all(self, request: web.Request) -> web.Response:
        """Replay every event that matches, oldest first, in the background.

        The answer is the bulk action; get it by its `request_id` to see its progress. It survives
        the death of any process. Events that were never attempted, that are being delivered, or
        that arrive after the request are not changed. With `dry_run`, nothing is changed and the
        answer has the number of events that match.
        """
        return await self._change_matching(
            request, Action.REPLAY, action_schemas.BulkReplayRequestSchema()
        )

    async def cancel_all(self, request: web.Request) -> web.Response:
        """Stop retrying every event that matches, in the background, like a bulk replay."""
        return await self._change_matching(
            request, Action.CANCEL, action_schemas.BulkRequestSchema()
        )

    async def _change_matching(
        self, request: web.Request, action: Action, schema: ma.Schema
    ) -> web.Response:
        body = parse_request(await request.read() or b"{}")
        loaded = schemas.load(schema, body)
        if loaded["dry_run"]:
            by_status = await self._service.count_matching(action, event_schemas.filter_of(loaded))
            matched = sum(by_status.values())
            return json_answer(
                {"action": action, "dry_run": True, "matched": matched, "by_status": by_status}
            )
        bulk_action, new = await self._service.start_bulk_action(
            _instruction(request, action, loaded),
            filter_text(body),
            limit=loaded.get("limit"),
            per_second=loaded.get("per_second", self._service.default_per_second),
        )
        return json_answer(bulk_action_json(bulk_action), 202 if new else 200)

    async def bulk_action(self, request: web.Request) -> web.Response:
        """Show a bulk action and its progress."""
        return json_answer(
            bulk_action_json(await self._service.get_bulk_action(_request_id(request)))
        )

    async def bulk_actions(self, _request: web.Request) -> web.Response:
        """List the latest bulk actions, newest first."""
        recent = await self._service.recent_bulk_actions()
        return json_answer({"bulk_actions": [bulk_action_json(each) for each in recent]})

    async def stop(self, request: web.Request) -> web.Response:
        """Stop a bulk action after the chunk under way; changed events stay changed."""
        stopped = await self._service.stop_bulk_action(_request_id(request), _remote(request))
        return json_answer(bulk_action_json(stopped))


def _instruction(request: web.Request, action: Action, loaded: Mapping[str, Any]) -> Instruction:
    request_id = loaded.get("request_id", request.headers.get("Idempotency-Key"))
    if request_id is None:
        request_id = secrets.token_hex(16)
    if not is_request_id(request_id):
        text = "must be 1 to 255 printable characters, and neither . nor .."
        problem = Detail("Idempotency-Key", text)
        raise Refusal(422, "invalid_request", "the request has the wrong shape", (problem,))
    remote = _remote(request)
    return Instruction(action, request_id, loaded.get("by", remote), remote, loaded.get("reason"))


def _remote(request: web.Request) -> str:
    return request.remote or "unknown"


def _request_id(request: web.Request) -> str:
    return request.match_info["request_id"]


def bulk_action_json(bulk_action: BulkAction) -> dict[str, Any]:
    """Return a bulk action as operators see it."""
    finished_at = bulk_action.finished_at
    return {
        "request_id": bulk_action.request_id,
        "action": bulk_action.action,
        "state": bulk_action.state,
        "by": bulk_action.by,
        "remote": bulk_action.remote,
        "reason": bulk_action.reason,
        "limit": bulk_action.limit,
        "per_second": bulk_action.per_second,
        "matched": bulk_action.matched,
        "examined": bulk_action.examined,
        "changed": bulk_action.changed,
        "skipped": bulk_action.examined - bulk_action.changed,
        "stop_requested": bulk_action.stop_requested,
        "failure": bulk_action.failure,
        "filters": json.loads(bulk_action.filters),
        "started_at": instant_text(bulk_action.started_at),
        "finished_at": finished_at and instant_text(finished_at),
    }


_KEY = header("Idempotency-Key", "Makes the request repeatable, unless the body has a request_id")
_GUARDED = (401, 403, 429, 503)


def operations(service: ActionService) -> list[Operation]:
    """Return the routes that change events."""
    handlers = ActionHandlers(service)

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
                202: ("Started", action_schemas.BulkSchema),
                200: (
                    "Started before; or the counts of a dry run",
                    action_schemas.BulkAnswerSchema,
                ),
            },
            (400, 409, 413, 422, *_GUARDED),
            body=body,
            parameters=(_KEY,),
        )

    list_path = "/webhooks/bulk"
    one_path = f"{list_path}/{{request_id:[^/]+}}"  # any label, braces too
    shown = {200: ("The bulk action", action_schemas.BulkSchema)}
    return [
        one("replay", handlers.replay),
        one("cancel", handlers.cancel),
        many("replay", handlers.replay_all, action_schemas.BulkReplayRequestSchema),
        many("cancel", handlers.cancel_all, action_schemas.BulkRequestSchema),
        Operation(
            "GET",
            list_path,
            handlers.bulk_actions,
            "List bulk actions",
            "operate",
            {200: ("The latest", action_schemas.BulkListSchema)},
            _GUARDED,
        ),
        Operation(
            "GET",
            one_path,
            handlers.bulk_action,
            "Show a bulk action",
            "operate",
            shown,
            (404, *_GUARDED),
        ),
        Operation(
            "POST",
            f"{one_path}/stop",
            handlers.stop,
            "Stop a bulk action",
            "operate",
            shown,
            (404, *_GUARDED),
        ),
    ]
