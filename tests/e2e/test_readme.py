"""The commands of README and tutorial, as they stand there, against the stack of `make up`."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest

from tests.e2e import processes
from tests.support import SECRET, eventually

ROOT = Path(__file__).parents[2]
BLOCKS, LESSONS = (
    re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    for name in ("README.md", "docs/tutorial.md")
)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def paste(script: str, cwd: Path) -> str:
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await shell.communicate()
    assert shell.returncode == 0, f"{script}\n{out.decode()}\n{err.decode()}"
    return out.decode()


@pytest.fixture
def home(tmp_path):
    """Return a directory like a checkout after `make up`, with a secret and a venv."""
    assert all(map(is_free, (8000, 8001, 9101, 9102))), "the README's ports are in use"
    (tmp_path / ".env").write_text(f"WDS_HMAC_SECRET={SECRET}\n")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


async def test_readme_and_tutorial_commands_work_as_pasted(home):
    assert all(map(shutil.which, ("bash", "curl", "openssl", "python3")))
    async with processes.running("up", env={}, cwd=home) as stack:
        await eventually(
            lambda: any(line.startswith("[up] ready") for line in stack.lines),
            within_s=60,
        )
        outputs = [await paste(f". ./.env\n{block}", home) for block in BLOCKS]
        first, github, found, search, listed, killed, watch = outputs
        assert '"status":"RECEIVED","duplicate":false' in first
        assert '"event_type":"ping"' in github and "GitHub-Hookshot" in github
        assert '"event_type":"order.created"' in found
        assert found.endswith('"idempotency_key": "order-1042", "total": 99.5}')
        assert '"by_status":{"RECEIVED"' in search
        assert "2 of 2 shown" in listed
        assert re.search(r"\['unknown', .*'success'\]$", killed, re.MULTILINE)
        assert "wds_fleet_events_received_total" in watch
        # Blocks that the tutorial shares with the README have run.
        outputs = [await paste(block, home) for block in LESSONS if block not in BLOCKS]
        sent, became, batch, late, mended = outputs
        assert all(re.search(r"[0-9a-f]{32}\s*\Z", answer) for answer in (sent, late))
        assert '"event_type": "invoice.paid"' in became
        assert '"accepted":2,"duplicates":0' in batch
        assert "5 stored, 0 repeated, 0 refused" in batch
        assert '"most_in_one_second"' in mended
        assert await stack.stop() == 0
