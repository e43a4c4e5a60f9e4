"""`search`, `replay` and `cancel` as real processes, against a real ingest process."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest

from tests.e2e import processes
from tests.support import new_event
from wds.local import embedded_engines

TOKEN = "operators-token"
HOSTILE = "[bold]x[/bold] $(id) <b>"


@pytest.fixture
async def service(engines, store, db, tmp_path):
    """Run an ingest process that requires a token; yield a function that runs commands."""
    env = engines.environ(
        WDS_MONGO_DB=db.name, WDS_PORT=str(embedded_engines.free_port()), WDS_OPERATOR_TOKEN=TOKEN
    )
    url = f"http://127.0.0.1:{env['WDS_PORT']}"

    async def run(*arguments, **more):
        async with processes.running(*arguments, env={**env, **more}, cwd=tmp_path) as command:
            return await command.ended(), command.lines

    async with processes.running("ingest", env=env, cwd=tmp_path, url=url) as ingest:
        await processes.ready(ingest, "/readyz")
        run.env, run.cwd = env, tmp_path
        yield run
    assert store


async def failed(store, db, count, **fields):
    """Store events that failed permanently, and return their ids."""
    events = [new_event(b'{"n": %d}' % number, **fields) for number in range(count)]
    await store.writer.insert(events)
    attempt = {
        "attempt_number": 1,
        "timestamp": await store.now(),
        "status_code": None,
        "success": False,
        "outcome": "failure",
        "duration_ms": 3,
        "error": HOSTILE,
        "response": None,
    }
    ids = [event.id for event in events]
    await db.events.update_many(
        {"_id": {"$in": ids}},
        {
            "$push": {"attempts": attempt},
            "$set": {"status": "FAILED_PERMANENTLY", "attempt_count": 1, "last_status_code": 0},
            "$currentDate": {"finished_at": True},
            "$unset": {"next_attempt_at": ""},
        },
    )
    return ids


async def test_search_prints_a_table_with_totals(service, store, db):
    ids = await failed(store, db, 3, event_type=HOSTILE)
    await store.writer.insert([new_event()])
    status, lines = await service("search", "--status", "FAILED_PERMANENTLY", COLUMNS="200")

    assert status == 0
    for event_id in ids:
        [line] = [each for each in lines if event_id in each]
        assert "FAILED_PERMANENTLY" in line and line.count(HOSTILE) == 2
    assert lines[-1] == "3 of 3 shown: 3 FAILED_PERMANENTLY"


async def test_search_limits_the_table_across_pages(service, store):
    await store.writer.insert([new_event(b'{"n": %d}' % number) for number in range(1200)])
    for limit, shown in [("501", 501), ("1200", 1200), ("5000", 1200)]:
        status, lines = await service("search", "--limit", limit, COLUMNS="200")
        assert (status, lines[-1]) == (0, f"{shown:,} of 1,200 shown: 1,200 RECEIVED")
        assert len({line.split()[2] for line in lines[1:-1]}) == shown


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), 1200),
        (("--limit", "700"), 700),
        (("--limit", "1001", "--sort=-attempt_count"), 1001),
        (("--limit", "5000", "--sort=-attempt_count"), 1200),
    ],
)
async def test_search_json_prints_one_line_per_event(service, store, options, expected):
    await store.writer.insert([new_event(b'{"n": %d}' % number) for number in range(1200)])
    status, lines = await service("search", "--json", "--from", "1h", *options)
    events = [json.loads(line) for line in lines]

    assert (status, len(events)) == (0, expected)
    assert len({event["id"] for event in events}) == expected
    assert not [event for event in events if "payload" in event]


async def test_search_json_prints_payloads(service, store):
    await store.writer.insert([new_event('{"text": "č\u2028"}'.encode())])
    for limit in ((), ("--limit", "1")):
        _, [line] = await service("search", "--json", "--payload", *limit)
        assert json.loads(line)["payload"] == {"text": "č\u2028"}


@pytest.mark.parametrize(
    "options",
    [[], ["--limit", "2"], ["--limit", "2", "--sort", "attempt_count"]],
    ids=["all", "some", "paged"],
)
async def test_search_json_prints_payloads_as_received_one_per_line(service, store, options):
    """Parsing and writing them again would change this text, or fail."""
    digits, deep = "9" * 5000, "[" * 1000 + "]" * 1000
    text = f'{{"k": "\\ud800",\r\n"n": [{digits}, 1e400, 1.50],\n"k": "č", "deep": {deep}}}'
    await store.writer.insert([new_event(text.encode()) for _ in range(2)])
    status, lines = await service("search", "--json", "--payload", *options)

    assert (status, len(lines)) == (0, 2)
    for line in lines:
        assert line.startswith('{"id":')
        assert line.endswith(f',"payload":{text}}}'.replace("\r", " ").replace("\n", " "))


async def test_search_json_ends_quietly_when_its_pipe_is_closed(service, store):
    await store.writer.insert([new_event(b'{"text": "%s"}' % (b"x" * 1000)) for _ in range(1000)])
    command = f"{sys.executable} -m wds search --json --payload | head -1 | wc -l"
    process = await asyncio.create_subprocess_shell(
        f"set -o pipefail; {command}",
        executable="/bin/bash",
        env={**processes.CLEAN_ENVIRON, **service.env},
        cwd=service.cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    assert (process.returncode, out.strip(), err) == (0, b"1", b"")


async def test_replay_changes_nothing_in_a_dry_run_or_without_confirmation(service, store, db):
    await failed(store, db, 3)
    for options, status, said in [
        (["--dry-run"], 0, "3 events match: 3 FAILED_PERMANENTLY"),
        ([], 1, "wds: not a terminal to ask: add --yes to go ahead, or --dry-run to count"),
    ]:
        ended, lines = await service("replay", "--status", "FAILED_PERMANENTLY", *options)
        assert (ended, lines[-1]) == (status, said)
    assert await db.events.count_documents({"history": {"$exists": True}}) == 0


async def test_replay_changes_each_match_once_and_records_who_asked(service, store, db):
    await failed(store, db, 1200, event_type="a")
    await failed(store, db, 2, event_type="b")
    command = ["replay", "--event-type", "a", "--yes", "--request-id", "r1", "--per-second", "0"]
    for _ in range(2):
        status, lines = await service(*command, "--by", "ann", "--reason", "fixed")
        assert (status, lines) == (0, ["request id r1", "done: 1,200 changed, 0 skipped"])

    replayed = await db.events.find({"history": {"$exists": True}}).to_list(None)
    assert len(replayed) == 1200
    assert {(each["history"][0]["by"], len(each["history"])) for each in replayed} == {("ann", 1)}


async def test_replay_follows_its_own_request_id_and_refuses_one_of_another(service, store, db):
    await failed(store, db, 2, event_type="a")
    same = ["replay", "--event-type", "a", "--request-id", "r1"]
    followed = (0, ["request id r1", "done: 2 changed, 0 skipped"])
    assert await service(*same, "--from", "2h", "--yes") == followed
    assert await service(*same, "--from", "2h") == followed
    assert await service(*same, "--from", "3h") == followed
    for other in [
        [*same, "--from", "2020-01-01", "--yes"],
        [*same, "--yes"],
        [*same, "--from", "2h", "--status", "DELIVERED", "--yes"],
        [*same, "--from", "2h", "--limit", "1", "--yes"],
        [*same, "--from", "2h", "--per-second", "7", "--yes"],
        ["cancel", *same[1:], "--from", "2h", "--yes"],
    ]:
        status, lines = await service(*other)
        assert (status, len(lines)) == (1, 1)
        assert "409 idempotency_conflict" in lines[0]
    assert await db.events.count_documents({"history": {"$size": 1}}) == 2


@pytest.mark.parametrize("request_id", ["[b]{a}" + "x" * 200, "../x y%2F?č"])
async def test_replay_follows_a_bulk_action_with_any_request_id(service, store, db, request_id):
    await failed(store, db, 1)
    command = ["replay", "--status", "FAILED_PERMANENTLY", "--yes", "--request-id", request_id]
    status, lines = await service(*command)
    assert (status, lines) == (0, [f"request id {request_id}", "done: 1 changed, 0 skipped"])


async def test_replay_and_cancel_change_events_by_id(service, store, db):
    ids = await failed(store, db, 2)
    status, lines = await service("replay", *ids, "nothing")
    assert status == 1
    assert sorted(lines) == sorted(
        [*(f"{each} DELIVERING" for each in ids), "nothing 404 not_found: no event has this id"]
    )
    status, lines = await service("cancel", *ids)
    assert (status, lines) == (0, [f"{each} FAILED_PERMANENTLY" for each in ids])
    [entry] = (await db.events.find_one({"_id": ids[0]}))["history"][1:]
    assert (entry["action"], entry["by"].endswith(os.uname().nodename)) == ("cancel", True)


async def test_search_without_the_token_names_the_missing_setting(service):
    status, lines = await service("search", WDS_OPERATOR_TOKEN="")
    assert status == 1
    assert "401 operators_only" in lines[-1] and "WDS_OPERATOR_TOKEN" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay"], "give ids, or at least one filter"),
        (["cancel", "x", "--status", "RECEIVED"], "not both"),
        (["search", "--payload"], "--payload needs --json"),
        (["search", "--json", "--sort", "attempt_count"], "needs --limit"),
    ],
)
async def test_operator_commands_refuse_contradictory_arguments(tmp_path, arguments, said):
    async with processes.running(*arguments, env={}, cwd=tmp_path) as command:
        assert await command.ended() == 2
        assert said in command.lines[-1]


async def test_search_reports_an_unreachable_service_in_one_line(tmp_path):
    url = f"http://127.0.0.1:{embedded_engines.free_port()}"
    async with processes.running("search", "--url", url, env={}, cwd=tmp_path) as command:
        assert await command.ended(60) == 1
        assert command.lines[-1].startswith(f"wds: {url} does not answer")
