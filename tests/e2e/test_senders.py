"""Events from providers, through real processes, to a receiver that checks wds's signature."""

from __future__ import annotations

import asyncio
import base64
import os
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
import standardwebhooks
import svix.webhooks

from tests.e2e import processes
from tests.senders import SENDERS
from tests.support import eventually, receiving
from wds.cli import sample_events

ROOT = Path(__file__).parents[2]
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
OLD_SECRET = "whsec_" + base64.b64encode(b"76543210fedcba9876543210").decode()
COUNT = 140
ODD = [
    b' { "spaces" :\t1 }\r\n',
    b'{"twice":1,"twice":2}',
    b'{"big":123456789012345678901234567890,"small":1e-400,"zero":-0.0}',
    '{"größe":"📏\\u0000\\ud800"}'.encode(),
    b'{"\\u0061":"\\/"}',
]


def payloads() -> list[tuple[str, bytes]]:
    """Return (event type, body) pairs; real ones if GITHUB_PAYLOADS names a directory of them."""
    directory = os.environ.get("GITHUB_PAYLOADS", "")
    if directory:
        files = sorted(Path(directory).glob("*.json"))
        assert len(files) >= COUNT, f"only {len(files)} payloads in {directory}"
        return [(file.name.split("__")[0], file.read_bytes()) for file in files]
    made = sample_events.generate(COUNT - len(ODD), 11, "github")
    return [*((each.event_type, each.body) for each in made), *(("odd", body) for body in ODD)]


@pytest.fixture
def env(engines, db, tmp_path):
    redis_url = engines.redis_url.rsplit("/", 1)[0] + "/3"
    (tmp_path / "wds.toml").write_text(
        '[sources.github]\nscheme = "github"\nsecrets = ["github-secret"]\n'
    )
    return {
        **engines.environ(),
        "WDS_MONGO_DB": db.name,
        "WDS_REDIS_URL": redis_url,
        "WDS_RATE_LIMIT": "0",
    }


async def test_delivery_of_githubs_payloads_is_signed_and_byte_for_byte(env, db, tmp_path):
    sent = payloads()
    async with receiving() as receiver:
        more = {
            "WDS_DOWNSTREAM_URL": receiver.url,
            "WDS_DOWNSTREAM_SECRET": f"{SECRET} {OLD_SECRET}",
        }
        async with (
            processes.ingest({**env, **more}, cwd=tmp_path) as ingest,
            processes.dispatcher({**env, **more}, cwd=tmp_path),
            aiohttp.ClientSession() as session,
        ):

            async def send(number, kind, body):
                headers = SENDERS["github"].headers(body, 0)
                headers["X-GitHub-Event"] = kind
                headers["X-GitHub-Delivery"] = f"delivery-{number}"
                url = f"{ingest.url}/webhooks/ingest/github"
                async with session.post(url, data=body, headers=headers) as response:
                    assert response.status == 202, await response.text()

            await asyncio.gather(*(send(n, *each) for n, each in enumerate(sent)))
            await eventually(
                lambda: db.events.count_documents({"status": "DELIVERED"}),
                lambda count: count == len(sent),
                within_s=60,
            )
    assert Counter(each.body for each in receiver.requests) == Counter(body for _, body in sent)
    stored = await db.events.find({}, {"event_type": 1, "payload": 1}).to_list(None)
    assert Counter((each["event_type"], each["payload"]) for each in stored) == Counter(sent)
    for request in receiver.requests:
        for secret in (SECRET, OLD_SECRET):
            arguments = request.body, request.headers
            standardwebhooks.Webhook(secret).verify(*arguments, json_parse=False)
            svix.webhooks.Webhook(secret).verify(*arguments)


async def test_send_signs_as_each_provider_of_the_example(env, db, tmp_path):
    (tmp_path / "wds.toml").write_text((ROOT / "wds.example.toml").read_text())
    async with processes.ingest(env, cwd=tmp_path) as ingest:
        port = ingest.url.rpartition(":")[2]

        async def send(name):
            async with processes.running(
                *("send", "--source", name, "--count", "3", "--seed", "5"),
                env={**env, "WDS_PORT": port},
                cwd=tmp_path,
            ) as sending:
                assert await sending.ended() == 0, sending.text
                assert sending.lines[-1] == "3 stored, 0 repeated, 0 refused"

        names = ("default", "github", "stripe", "shopify", "slack", "standard")
        await asyncio.gather(*map(send, names))
    for name in names:
        stored = await db.events.find({"source": name}).to_list(None)
        assert len(stored) == 3
        assert all(each["event_type"] and each["idempotency_key"] for each in stored)


async def test_send_reports_an_unknown_source_in_one_sentence(env, tmp_path):
    async with processes.running(
        "send", "--source", "nobody", "--count", "1", env=env, cwd=tmp_path
    ) as send:
        assert await send.ended() == 1
    assert send.lines == [
        "wds: there is no source nobody; wds.toml and WDS_HMAC_SECRET define default, github"
    ]


@pytest.mark.parametrize("command", ["ingest", "up"])
async def test_command_reports_mistakes_of_settings_and_sources_together(env, tmp_path, command):
    (tmp_path / "wds.toml").write_text('[sources.a]\nscheme = "nope"\nsecrets = ["hunter2"]\n')
    async with processes.running(command, env={**env, "WDS_PORT": "x"}, cwd=tmp_path) as process:
        assert await process.ended() == 2
    assert [line.split(":")[1].strip() for line in process.lines] == ["WDS_PORT", "wds.toml line 2"]
    assert "hunter2" not in process.text


async def test_command_reports_a_missing_sources_file(env, tmp_path):
    (tmp_path / "wds.toml").unlink()
    async with processes.running(
        "ingest", env={**env, "WDS_CONFIG": "other.toml"}, cwd=tmp_path
    ) as process:
        assert await process.ended() == 2
    assert process.lines == ["wds: WDS_CONFIG: there is no file other.toml"]
