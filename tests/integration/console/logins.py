"""Logging in to the console over HTTP, and the answers of its routes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.support import new_event

TOKEN = "the-operators-token"
EVENT = new_event(b'{"n":1}', key="k")
EVENT_PATH = f"/console/events/{EVENT.id}"


@dataclass
class Answer:
    status: int
    headers: object
    text: str

    @property
    def cookie(self):
        return self.headers.get("Set-Cookie", "")

    @property
    def form_token(self):
        return re.search(r'name="form_token" value="([0-9a-f]{64})"', self.text)[1]


async def log_in(ask, **headers):
    answer = await ask("/console/login", data={"token": TOKEN}, **headers)
    assert answer.status == 303
    return answer.cookie


def console_routes(app):
    for route in app.router.routes():
        pattern = route.resource.canonical
        if pattern == "/" or pattern.startswith("/console"):
            yield route.method, pattern, re.sub(r"{\w+}", "x", pattern)
