"""The pages that show bulk actions and their progress, and the button that stops one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from wds.api.actions import bulk_action_json
from wds.console.action_forms import filter_pairs
from wds.console.paths import bulk_action_path
from wds.console.rendering import page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from wds.actions.service import ActionService
    from wds.domain.operator_actions import BulkAction


class BulkActionPages:
    """Handlers of the pages about bulk actions."""

    def __init__(self, service: ActionService, now: Callable[[], Awaitable[datetime]]) -> None:
        """Create the handlers; `now` returns the database's time."""
        self._service = service
        self._now = now

    async def list_recent(self, request: web.Request) -> web.StreamResponse:
        """List the latest bulk actions."""
        bulk_actions = await self._service.recent_bulk_actions()
        context = {"bulk_actions": [_view(each) for each in bulk_actions], "now": await self._now()}
        return page(request, "bulk_actions.html", context)

    async def show(self, request: web.Request) -> web.StreamResponse:
        """Show a bulk action and its progress."""
        bulk = _view(await self._service.get_bulk_action(request.match_info["request_id"]))
        context = {
            "bulk": bulk,
            "filter_pairs": filter_pairs(bulk["filters"]),
            "now": await self._now(),
        }
        return page(request, "bulk_action.html", context)

    async def stop(self, request: web.Request) -> web.StreamResponse:
        """Stop a bulk action after the chunk under way, and redirect to its page."""
        request_id = request.match_info["request_id"]
        stopped = await self._service.stop_bulk_action(request_id, request.remote or "unknown")
        raise web.HTTPSeeOther(bulk_action_path(stopped.request_id))


def _view(bulk_action: BulkAction) -> dict[str, Any]:
    """Return what the templates show of a bulk action.

    `max_events` is the most events it can change; None while that is unknown.
    """
    bounds = [each for each in (bulk_action.limit, bulk_action.matched) if each is not None]
    return {
        **bulk_action_json(bulk_action),
        "started_at": bulk_action.started_at,
        "finished_at": bulk_action.finished_at,
        "max_events": min(bounds, default=None),
        "url": bulk_action_path(bulk_action.request_id),
    }
