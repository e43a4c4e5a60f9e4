"""The documents say what is there, and what they name exists."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest
from opentelemetry import environment_variables as more_environment_variables
from opentelemetry.sdk import environment_variables
from prometheus_client import REGISTRY

from wds import mock_downstream
from wds.config import Settings
from wds.domain.events import derived_id
from wds.ingest import create_app
from wds.local import embedded_engines
from wds.storage import rollup_queries
from wds.storage.store import Store
from wds.telemetry import metrics, tracing

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
ALL = "\n".join(path.read_text() for path in [*DOCUMENTS, ROOT / "Makefile"])


def shown(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(f"{number:g}" for number in default)
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_settings_are_documented_with_default_and_meaning():
    rows = re.findall(r"^\| `(WDS_\w+)` \| (.*?) \| (.*) \|$", OPERATIONS, re.MULTILINE)
    expected = []
    for spec in fields(Settings):
        default = "" if spec.default in (None, ()) else f"`{shown(spec.default)}`"
        expected.append((spec.metadata["env"], default, spec.metadata["doc"]))
    assert rows == expected


def test_documents_name_only_existing_settings():
    known = {spec.metadata["env"] for spec in fields(Settings)}
    mentioned = set(re.findall(r"\bWDS_[A-Z_]+[A-Z]", ALL + (ROOT / ".env.example").read_text()))
    assert mentioned <= known


def test_documents_name_only_existing_tracing_variables():
    known = set(vars(environment_variables)) | set(vars(more_environment_variables))
    named = set(re.findall(r"\bOTEL_[A-Z_]+[A-Z]", ALL + (ROOT / ".env.example").read_text()))
    assert {"OTEL_EXPORTER_OTLP_ENDPOINT", *tracing.ENDPOINTS} <= named <= known


def documented_metrics() -> dict[str, str]:
    rows = re.findall(r"^\| `(wds_\w+)` \| (.*) \|$", OPERATIONS, re.MULTILINE)
    return dict(rows)


def existing_metrics() -> dict[str, str]:
    return {
        family.name + ("_total" if family.type == "counter" else ""): family.documentation
        for family, _ in metrics.catalogue()
    }


def test_catalogue_has_exactly_the_metrics_that_a_process_exposes():
    metrics.all_replicas.show({"now": datetime.now(UTC), "replicas": [], "retired": {}})
    exposed = {family.name for family in REGISTRY.collect() if family.name.startswith("wds_")}
    metrics.all_replicas.show(None)
    assert {family.name for family, _ in metrics.catalogue()} == exposed


def test_metrics_are_exactly_the_documented_ones():
    assert documented_metrics() == existing_metrics()


def test_log_events_are_documented_and_the_documented_ones_exist():
    table = OPERATIONS.split("## Logs")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[a-z_`, ]+`) \| (?:ingest|dispatcher|both) \|", table, re.MULTILINE)
    documented = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    package = ROOT / "src" / "wds"
    code = "".join(path.read_text() for path in package.rglob("*.py"))
    event_log = (package / "telemetry" / "event_log.py").read_text()
    logged = set(re.findall(r'\blog\.\w+\(\s*"(\w+)"', event_log))
    assert {"received", "attempt", "bulk_action_begun"} <= logged
    assert logged | {"replayed", "cancelled"} <= documented
    assert {name for name in documented if f'"{name}"' in code} == documented


def test_counted_refusal_reasons_are_exactly_the_documented_ones():
    code = "".join(
        (ROOT / "src" / "wds" / name).read_text()
        for name in ("web/operator_access.py", "console/auth.py")
    )
    [listed] = re.findall(r"counts refusals by reason: (.*?)\. ", OPERATIONS, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == set(
        re.findall(r'counted_refusal\(\s*\d+,\s*"(\w+)"', code)
    )


def test_max_event_types_is_documented():
    assert f"the {rollup_queries.MAX_EVENT_TYPES:,} commonest types at most" in OPERATIONS


@pytest.mark.parametrize("parameter", embedded_engines.PARAMETERS)
def test_mongod_parameters_are_in_compose_and_documented(parameter):
    assert f"- --setParameter={parameter}\n" in (ROOT / "compose.yaml").read_text()
    assert f"`--setParameter {parameter}`" in (ROOT / "docs" / "scaling.md").read_text()


def commands() -> set[str]:
    help_text = subprocess.run(
        [sys.executable, "-m", "wds", "--help"], capture_output=True, text=True, check=True
    ).stdout
    return set(re.findall(r"^    ([a-z-]+) ", help_text, re.MULTILINE))


def test_commands_are_exactly_the_documented_ones():
    existing = commands()
    assert existing >= {"ingest", "dispatcher", "mock-downstream", "up", "demo", "send"}
    assert set(re.findall(r"python -m wds ([a-z-]+)", ALL)) == existing


def test_documents_name_only_existing_make_targets():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    documents = ALL.replace((ROOT / "Makefile").read_text(), "")
    mentioned = set(re.findall(r"(?:^|`)make ([a-z-]+)", documents, re.MULTILINE))
    assert {"demo", "test", "up", "lint"} <= mentioned <= targets


def test_pictures_are_shown_and_described_and_exist():
    shown = set()
    for document in DOCUMENTS:
        text = document.read_text()
        marked = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)
        tagged = re.findall(r'<img alt="([^"]*)" src="([^"]+)">', text)
        assert all(described for described, _ in marked + tagged), document
        sources = re.findall(r'srcset="([^"]+)"', text)
        shown |= {(document.parent / each).resolve() for each in sources}
        shown |= {(document.parent / each).resolve() for _, each in marked + tagged}
    pictures = set((ROOT / "docs").glob("images/*")) | set((ROOT / "docs").glob("diagrams/*.svg"))
    assert shown == pictures


async def routes() -> set[str]:
    store = Store("mongodb://127.0.0.1:1", "never_opened")
    apps = (create_app(Settings(hmac_secrets=("s",)), store), mock_downstream.create_app())
    found = {
        resource.canonical
        for app in apps
        for resource in app.router.resources()
        if not resource.canonical.startswith("/docs/")
    }
    await store.close()
    return found


async def test_documents_name_only_existing_routes():
    existing = await routes()
    paths = set(re.findall(r"127\.0\.0\.1:800[01](/[\w/{}$-]*[\w}])", README + TUTORIAL))
    paths |= set(re.findall(r"`(?:GET|POST|PUT) (/[\w/{}-]+)`", ALL))
    assert paths
    assert {path.replace("$id", "{id}") for path in paths} <= existing


def test_readme_shows_the_id_that_its_event_gets():
    [key] = set(re.findall(r'"idempotency_key": "([^"]+)"', README))
    assert f'{{"id":"{derived_id("default", key)}","status"' in README


def test_architecture_names_only_existing_tests():
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", ARCHITECTURE)
    assert len(named) >= 10
    for file, test in named:
        [path] = ROOT.glob(f"tests/**/{file}")
        assert not test or f"def {test}(" in path.read_text(), test


def test_architecture_lists_every_package_and_top_module_once():
    table = ARCHITECTURE.split("## Rooms")[1].split("##")[0]
    named = [
        name
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    ]
    package = ROOT / "src" / "wds"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert sorted(named) == sorted(rooms | modules)


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_existing_files_and_headings(document):
    for link in re.findall(r"\]\((?!http|reference/)([^)]+)\)", document.read_text()):
        target, _, anchor = link.partition("#")
        file = document.parent / target if target else document
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


def test_env_example_has_every_setting_with_its_default():
    text = (ROOT / ".env.example").read_text()
    shown_there = dict(re.findall(r"^(?:# )?(WDS_[A-Z_]+)=(.*)$", text, re.MULTILINE))
    expected = {
        spec.metadata["env"]: "" if spec.default in (None, ()) else shown(spec.default)
        for spec in fields(Settings)
    }
    assert shown_there == expected


def test_site_navigation_has_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    listed = set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    pages = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    assert pages <= listed


@pytest.mark.parametrize("name", ["architecture_diagram", "flow_diagram"])
def test_diagrams_are_drawn_from_their_source_and_shown_in_the_readme(name):
    folder = ROOT / "docs" / "diagrams"
    source = hashlib.sha256((folder / f"{name}.dot").read_bytes()).hexdigest()
    drawn = (folder / f"{name}.svg").read_text()
    assert f"sha256 of the source: {source}" in drawn, "run `make diagrams`"
    assert f"docs/diagrams/{name}.svg" in README
