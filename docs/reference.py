"""Generate the reference pages from the code while the site is built; see mkdocs.yml.

Settings, metrics, commands, routes and schemas come from the running code, so they are never stale.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import mkdocs_gen_files

from wds import mock_downstream
from wds.config import Settings
from wds.ingest import create_app
from wds.storage.store import Store
from wds.telemetry import metrics
from wds.web import openapi

ROOT = Path(__file__).parents[1]


def cell(text: object) -> str:
    """Return `text` escaped for one cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def table(*columns: str) -> list[str]:
    """Return the two header lines of a table."""
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


def write(path: str, *parts: str) -> None:
    """Add a page to the site."""
    with mkdocs_gen_files.open(path, "w") as page:
        page.write("\n".join(parts) + "\n")


def default_of(value: object) -> str:
    """Return a default in the form that it has in the environment."""
    if value in (None, ()):
        return ""
    if isinstance(value, tuple):
        return f"`{','.join(f'{number:g}' for number in value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def settings_page() -> list[str]:
    """Return every setting with its default and meaning."""
    rows = [
        f"| `{spec.metadata['env']}` | {default_of(spec.default)} | {cell(spec.metadata['doc'])} |"
        for spec in fields(Settings)
    ]
    intro = (
        "Environment variables, or lines of `.env` in the working directory. The environment takes"
        " precedence. At start, wds refuses an invalid combination and names the settings."
    )
    return ["# Settings", "", intro, "", *table("setting", "default", "meaning"), *rows]


def metrics_page() -> list[str]:
    """Return every metric with its type, labels and meaning."""
    rows = []
    mocks = [(family, ("result",)) for family in mock_downstream.REQUESTS.describe()]
    for family, labels in [*metrics.catalogue(), *mocks]:
        name = family.name + ("_total" if family.type == "counter" else "")
        listed = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` | {family.type} | {listed} | {cell(family.documentation)} |")
    intro = (
        "Each process serves its own metrics at `/metrics`. Metrics named `wds_fleet_` are totals"
        " over all replicas. The last one belongs to the mock downstream."
    )
    return ["# Metrics", "", intro, "", *table("metric", "type", "labels", "meaning"), *rows]


def commands_page() -> list[str]:
    """Return the help text of every command."""
    overview = help_text("--help")
    names = re.findall(r"^    ([a-z-]+) ", overview, re.MULTILINE)
    page = ["# Commands", "", "`wds` and `python -m wds` are the same.", "", fenced(overview)]
    for name in names:
        page += ["", f"## {name}", "", fenced(help_text(name, "--help"))]
    return page


def help_text(*arguments: str) -> str:
    """Return what `wds` prints for these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "wds", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "96"},
    ).stdout


def fenced(text: str) -> str:
    """Return `text` as a block of code."""
    return f"```text\n{text.rstrip()}\n```"


async def documents() -> dict[str, dict[str, Any]]:
    """Return the OpenAPI documents that the two services serve."""
    store = Store("mongodb://127.0.0.1:1", "never_opened")
    try:
        ingest = create_app(Settings(hmac_secrets=("unused",)), store)
        return {
            "Ingest service": ingest[openapi.DOCUMENT].content(),
            "Mock downstream": mock_downstream.create_app()["swagger_dict"],
        }
    finally:
        await store.close()


def api_page(services: dict[str, dict[str, Any]]) -> list[str]:
    """Return every route with its parameters, answers and schemas."""
    page = [
        "# HTTP API",
        "",
        "Generated from `/docs/openapi.json` of both services. Try the routes at `/docs`.",
    ]
    for title, document in services.items():
        page += ["", f"## {title}"]
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                page += ["", f"### `{method.upper()} {path}`", ""]
                page += [f"**{operation.get('summary', '')}.** {operation.get('description', '')}"]
                page += parameters(operation.get("parameters", []))
                page += ["", *table("answer", "meaning", "body")]
                for status, answer in operation["responses"].items():
                    meaning = cell(answer.get("description", ""))
                    page.append(f"| {status} | {meaning} | {shape(answer.get('schema', {}))} |")
        page += ["", f"## Schemas of the {title[0].lower()}{title[1:]}"]
        for name, schema in sorted(document["definitions"].items()):
            page += ["", f"### {name}", "", *table("field", "type", "meaning")]
            required = schema.get("required", [])
            for field, kind in schema.get("properties", {}).items():
                star = " (required)" if field in required else ""
                page.append(f"| `{field}`{star} | {shape(kind)} | {meaning_of(kind)} |")
    return page


def parameters(declared: list[dict[str, Any]]) -> list[str]:
    """Return a table of an operation's parameters, if it has any."""
    if not declared:
        return []
    rows = [
        f"| `{each['name']}` | {each['in']} | {cell(each.get('description', ''))}"
        f"{shape(each['schema']) if 'schema' in each else ''} |"
        for each in declared
    ]
    return ["", *table("parameter", "in", "meaning"), *rows]


def shape(schema: dict[str, Any]) -> str:
    """Return the name of a schema's type."""
    reference = schema.get("$ref") or next((e["$ref"] for e in schema.get("allOf", [])), None)
    if reference:
        return str(reference).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {shape(schema['items'])}"
    kind = schema.get("type", "")
    return cell(" or ".join(kind) if isinstance(kind, list) else kind)


def meaning_of(schema: dict[str, Any]) -> str:
    """Return a field's description, its values, its default and its bounds."""
    sentences = [str(schema["description"])] if "description" in schema else []
    one_of = schema.get("enum") or schema.get("items", {}).get("enum")
    if one_of:
        sentences.append("One of " + ", ".join(f"`{value}`" for value in one_of) + ".")
    sentences += [
        f"{word} {schema[key]}."
        for key, word in (("default", "Default"), ("minimum", "At least"), ("maximum", "At most"))
        if key in schema
    ]
    return cell(" ".join(sentences))


def root_page(name: str) -> str:
    """Return a document of the repository's root, with its links adapted to the site."""
    text = (ROOT / name).read_text()
    text = text.replace("](docs/", "](").replace("](ARCHITECTURE.md", "](architecture.md")
    return text.replace("](CONTRIBUTING.md", "](contributing.md").replace(
        "](README.md", "](index.md"
    )


def page_of_docs(name: str) -> str:
    """Return a page of docs/, with its links to documents of the root adapted to the site."""
    return (ROOT / "docs" / name).read_text().replace("../ARCHITECTURE.md", "architecture.md")


def operations_page() -> str:
    """Return docs/operations.md, with links to files outside the site replaced by their text."""
    text = (ROOT / "docs" / "operations.md").read_text()
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", text)


for name in ("index.md", "explanation/lease-protocol.md", "explanation/comparison.md"):
    write(name, page_of_docs(name))
write("operations.md", operations_page())
write("reference/settings.md", *settings_page())
write("reference/metrics.md", *metrics_page())
write("reference/commands.md", *commands_page())
write("reference/http-api.md", *api_page(asyncio.run(documents())))
write("architecture.md", root_page("ARCHITECTURE.md"))
write("contributing.md", root_page("CONTRIBUTING.md"))
write("changelog.md", root_page("CHANGELOG.md"))
