"""The pages that show bulk actions and their progress, and the button that stops one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from wds.api.actions import bulk_json
from wds.console.action_forms import filter_pairs
from wds.console.paths import bulk_action_path
from wds.console.rendering import page
from wds.domain.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from wds.api.actions import Operate
    from wds.storage.bulk_actions import BulkActions
    from wds.storage.lease_queries import Document


class BulkActionPages:
    """Handlers of the pages about bulk actions."""

    def __init__(
        self, bulk_actions: BulkActions, operate: Operate, now: Callable[[], Awaitable[datetime]]
    ) -> None:
        """Create the handlers; `operate` stops bulk actions, `now` returns the database's time."""
        self._bulk_actions = bulk_actions
        self._operate = operate
        self._now = now

    async def list_recent(self, request: web.Request) -> web.StreamResponse:
        """List the latest bulk actions."""
        documents = await self._bulk_actions.recent()
        context = {"bulks": [_view(each) for each in documents], "now": await self._now()}
        return page(request, "bulk_actions.html", context)

    async def show(self, request: web.Request) -> web.StreamResponse:
        """Show a bulk action and its progress."""
        document = await self._bulk_actions.get(request.match_info["request_id"])
        if document is None:
            raise Refusal(404, "not_found", "no bulk action has this request id")
        bulk = _view(document)
        context = {
            "bulk": bulk,
            "filter_pairs": filter_pairs(bulk["filters"]),
            "now": await self._now(),
        }
        return page(request, "bulk_action.html", context)

    async def stop(self, request: web.Request) -> web.StreamResponse:
        """Stop a bulk action after the chunk under way, and redirect to its page."""
        stopped = await self._operate.end(request)
        raise web.HTTPSeeOther(bulk_action_path(stopped["_id"]))


def _view(document: Document) -> dict[str, Any]:
    """Return what the templates show of a stored bulk action.

    `max_events` is the most events it can change; None while that is unknown.
    """
    view = bulk_json(document)
    view.update(started_at=document["started_at"], finished_at=document.get("finished_at"))
    bounds = [each for each in (view["limit"], view["matched"]) if each is not None]
    return {
        **view,
        "url": bulk_action_path(document["_id"]),
        "max_events": min(bounds, default=None),
    }
