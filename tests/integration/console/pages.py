"""The console over HTTP: pages as a browser reads them."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from html.parser import HTMLParser

import aiohttp

from wds.ingest import create_app
from wds.web.server import listening


class Page(HTMLParser):
    """A page as a browser would read it: elements with their attributes, and text."""

    def __init__(self, status, headers, html):
        super().__init__(convert_charrefs=True)
        self.status, self.headers, self.html = status, headers, html
        self.elements, self.text = [], ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.text += " " if tag in {"td", "dd", "dt", "li", "p"} else ""

    def handle_data(self, data):
        self.text += data

    def all(self, tag, **attributes):
        """Return the attributes of every `tag` with these; an attribute without a value is None."""
        required = {name.rstrip("_").replace("_", "-"): attributes[name] for name in attributes}
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and required.items() <= attrs.items()
        ]

    def links(self, prefix):
        return [a["href"] for a in self.all("a") if a.get("href", "").startswith(prefix)]


@asynccontextmanager
async def serve_console(settings, store):
    """Serve the console; yield a function that requests a page."""
    async with (
        listening(create_app(settings, store), "127.0.0.1", 0) as port,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
    ):

        async def ask(path, *, data=None, **headers):
            method = "GET" if data is None else "POST"
            url = f"http://127.0.0.1:{port}{path}"
            async with session.request(
                method, url, data=data, headers=headers, allow_redirects=False
            ) as answer:
                body = await answer.read()
                return Page(answer.status, answer.headers, body.decode("utf-8", "replace"))

        yield ask


def event_ids(page):
    """Return the ids of the events that a page links to, in order."""
    return [href.rpartition("/")[2] for href in page.links("/console/events/")]


async def hidden_fields(get_page, path):
    """Return the hidden fields of a page's forms."""
    page = await get_page(path)
    assert page.status == 200
    return {each["name"]: each["value"] for each in page.all("input", type="hidden")}
