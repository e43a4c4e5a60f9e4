"""The alert rules in promtool and every query in a Prometheus that scrapes real processes.

Needs `promtool` and `prometheus` on the PATH.
"""

from __future__ import annotations

import asyncio
import math
import re
import shutil
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.e2e import processes
from tests.support import eventually, signed
from tests.unit.test_monitoring import BOARD, PANELS, RULES
from wds.local import embedded_engines

MONITORING = Path(__file__).parents[2] / "monitoring" / "prometheus"


async def promtool(*arguments: str, cwd: Path = MONITORING) -> tuple[int | None, str]:
    """Return promtool's exit status and what it had to say."""
    process = await asyncio.create_subprocess_exec(
        *("promtool", *arguments),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_rules_and_the_example_that_loads_them_are_sound():
    status, said = await promtool("check", "rules", "--lint-fatal", "wds.rules.yml")
    assert status == 0, said
    assert f"{len(RULES)} rules found" in said
    status, said = await promtool("check", "config", "prometheus.yml")
    assert status == 0, said


async def test_alerts_fire_in_their_cases_and_in_no_other():
    status, said = await promtool("test", "rules", "wds.rules.test.yml")
    assert status == 0, said


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES])
@pytest.mark.parametrize("instead", ["vector(0) > 1", "vector(1)"], ids=["never", "always"])
async def test_control_cases_find_a_rule_that_never_or_always_fires(tmp_path, alert, instead):
    """The control: with this one rule broken the cases fail, and it is this one they name."""
    rules = yaml.safe_load((MONITORING / "wds.rules.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            if rule["alert"] == alert:
                rule["expr"] = instead
    (tmp_path / "wds.rules.yml").write_text(yaml.safe_dump(rules))
    shutil.copy(MONITORING / "wds.rules.test.yml", tmp_path)
    status, said = await promtool("test", "rules", "wds.rules.test.yml", cwd=tmp_path)
    assert status != 0
    assert set(re.findall(r"alertname: (\w+)", said)) == {alert}


@asynccontextmanager
async def prometheus(targets: dict[str, str], home: Path):
    """Run a Prometheus with the rules that scrapes `targets` (job -> address) every half second."""
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "wds.rules.yml")],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [address]}]}
            for job, address in targets.items()
        ],
    }
    (home / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = embedded_engines.free_port()
    url = f"http://127.0.0.1:{port}"
    command = (
        "prometheus",
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    async with processes.running(command=command, env={}, cwd=home, url=url) as made:
        await processes.ready(made, "/-/ready")
        yield made


async def send(url: str, changes: dict[str, str]) -> None:
    headers = {**signed(b"{}"), **changes}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/webhooks/ingest", data=b"{}", headers=headers) as response,
    ):
        assert response.status == (401 if changes else 202)


async def ask(url: str, **parameters: str) -> dict:
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, params=parameters) as response,
    ):
        answer = await response.json()
        assert answer["status"] == "success", answer
        return answer["data"]


QUERIES = {
    f"{panel['title']}: {target['legendFormat']}": target["expr"]
    for panel in PANELS
    for target in panel["targets"]
}


async def test_dashboard_queries_all_return_numbers_in_a_real_installation(engines, db, tmp_path):
    env = {
        **engines.environ(),
        "WDS_MONGO_DB": db.name,
        "WDS_RATE_LIMIT": "40",
        "WDS_MOCK_RATE_LIMIT": "0",
        "WDS_MOCK_FAILURE_RATE": "0.3",
        "WDS_BACKOFF": "0.1",
    }
    async with AsyncExitStack() as stack:
        mock = await stack.enter_async_context(processes.mock(env, cwd=tmp_path))
        env["WDS_DOWNSTREAM_URL"] = f"{mock.url}/downstream/receive"
        ingest = await stack.enter_async_context(processes.ingest(env, cwd=tmp_path))
        dispatcher = await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
        targets = {
            "some-ingest": ingest.url.removeprefix("http://"),
            "some-dispatcher": dispatcher.url.removeprefix("http://"),
        }
        watcher = await stack.enter_async_context(prometheus(targets, tmp_path))

        async def missing() -> dict[str, object]:
            """Send some more, as rates need; return the queries that find no number."""
            found = {}
            for number in range(20):
                await send(ingest.url, {} if number else {"X-Webhook-Signature": "sha256=wrong"})
            for title, query in QUERIES.items():
                plain = query.replace("$__rate_interval", "1m").replace("$__range", "5m")
                data = await ask(
                    f"{watcher.url}/api/v1/query", query=plain.replace("$job", "some-.*")
                )
                values = [float(each["value"][1]) for each in data["result"]]
                if not values or not all(map(math.isfinite, values)):
                    found[title] = values
            return found

        assert await eventually(missing, lambda found: not found, within_s=60) == {}

        groups = (await ask(f"{watcher.url}/api/v1/rules"))["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) == len(RULES)
        assert {rule["health"] for rule in rules} == {"ok"}
        assert {rule["lastError"] for rule in rules if "lastError" in rule} <= {""}

        # The variable that offers the jobs finds them, and nothing that is not ours.
        [definition] = [
            variable["definition"]
            for variable in BOARD["templating"]["list"]
            if variable["name"] == "job"
        ]
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", definition).groups()
        data = await ask(f"{watcher.url}/api/v1/label/{label}/values", **{"match[]": metric})
        assert set(data) == set(targets)


async def test_alert_fires_in_an_installation_without_a_dispatcher(engines, db, tmp_path):
    """One alert from a real process to Prometheus's own verdict, waiting time and all left out."""
    rules = yaml.safe_load((MONITORING / "wds.rules.yml").read_text())
    [expression] = [
        rule["expr"]
        for group in rules["groups"]
        for rule in group["rules"]
        if rule["alert"] == "WdsNoDispatcher"
    ]
    env = {**engines.environ(), "WDS_MONGO_DB": db.name, "WDS_RATE_LIMIT": "0"}
    async with AsyncExitStack() as stack:
        ingest = await stack.enter_async_context(processes.ingest(env, cwd=tmp_path))
        targets = {"any": ingest.url.removeprefix("http://")}
        watcher = await stack.enter_async_context(prometheus(targets, tmp_path))

        async def fires() -> bool:
            data = await ask(f"{watcher.url}/api/v1/query", query=expression)
            return bool(data["result"])

        await eventually(fires, within_s=30)
        await stack.enter_async_context(processes.dispatcher(env, cwd=tmp_path))
        await eventually(fires, lambda firing: not firing, within_s=30)
