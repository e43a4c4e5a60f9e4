"""The commands. The only reader of arguments and environment, and the only user of signals."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import secrets
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import uvloop
from dotenv import dotenv_values

from wds import __version__, dispatcher, ingest, mock_downstream
from wds.cli import check, operator_arguments, send as sending
from wds.config import NAMES, Settings, unknown
from wds.domain.errors import SettingsError, StartError, WdsError
from wds.ingestion import sources
from wds.ingestion.sources import Source
from wds.local import demo, embedded_engines, sample_events, stack
from wds.signing.scheme import EventInfo
from wds.telemetry import logs, tracing
from wds.web import server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

log = structlog.get_logger("wds")

DEFAULT_DATA_DIR = Path(".wds/up")
DEFAULT_CONFIG = Path("wds.toml")
DEMO_DATA_DIR = Path(".wds/demo")
"""Emptied before each demonstration, unless it was given another place."""
GC_THRESHOLDS = (20_000, 20, 20)
"""Less often than Python's own: requests leave few cycles behind, and a collection takes long."""
FAILED = 1
MISUSED = 2
_UNKNOWN = "it has no effect, unless a source's secrets_from names it"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong settings or use."""
    arguments = _parser().parse_args(argv)
    terminal = sys.stderr.isatty()
    arguments.log_format = getattr(arguments, "log_format", "console" if terminal else "json")
    arguments.log_level = getattr(arguments, "log_level", "info")
    logs.configure(arguments.log_format, arguments.log_level)
    environ = _environ()
    for name in unknown(environ):
        log.warning("unknown_setting", name=name, consequence=_UNKNOWN)
    try:
        status: int = arguments.run(arguments, environ)
    except SettingsError as error:
        for problem in error.problems:
            print(f"wds: {problem}", file=sys.stderr)
        return MISUSED
    except WdsError as error:
        print(f"wds: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status


def _environ() -> dict[str, str]:
    """Return the environment over `.env`: what is exported wins over what is written down."""
    written = {name: value for name, value in dotenv_values(".env").items() if value is not None}
    return {**written, **os.environ}


# -- commands --------------------------------------------------------------------------------


def _ingest(_: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings, found = _configured(environ, require=("WDS_HMAC_SECRET", "WDS_MONGO_URL"))
    tracer = tracing.start(environ, role="ingest")
    return _until_signal(lambda stop: ingest.serve(settings, found, stop, tracer))


def _dispatcher(_: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = Settings.load(environ, require=("WDS_MONGO_URL",))
    if settings.rate_limit and not settings.redis_url:
        raise SettingsError(["WDS_REDIS_URL is not set, and WDS_RATE_LIMIT is not 0"])
    tracer = tracing.start(environ, role="dispatcher")
    return _until_signal(lambda stop: dispatcher.serve(settings, stop, tracer))


def _mock(_: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = Settings.load(environ)

    async def serve(stop: asyncio.Event) -> None:
        app = mock_downstream.create_app(
            rate_limit=settings.mock_rate_limit,
            failure_rate=settings.mock_failure_rate,
            seed=settings.mock_seed,
            redis_url=settings.redis_url,
        )
        async with server.listening(app, settings.host, settings.mock_port):
            await stop.wait()

    return _until_signal(serve)


def _up(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings, _ = _configured(environ, require=("WDS_HMAC_SECRET",))
    return _until_signal(
        lambda stop: stack.up(
            settings,
            environ,
            dispatchers=arguments.dispatchers,
            data_dir=arguments.data_dir.resolve(),
            options=(f"--log-format={arguments.log_format}", f"--log-level={arguments.log_level}"),
            say=lambda line: print(line, flush=True),
            stop=stop,
        )
    )


def _demo(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    own = {
        "WDS_HMAC_SECRET": secrets.token_hex(32),
        "WDS_PORT": str(embedded_engines.free_port()),
        "WDS_MOCK_PORT": str(embedded_engines.free_port()),
        "WDS_METRICS_PORT": "0",
        "WDS_MOCK_SEED": "7",
        "WDS_CONFIG": os.devnull,
    }
    # None of the user's own settings, here or in a .env that the children would read: a
    # demonstration must never touch a database that is in use. Empty means unset.
    environ = {**environ, **dict.fromkeys(NAMES, ""), **own}
    settings = Settings.load(environ)

    async def show(_: asyncio.Event) -> None:
        data_dir: Path = arguments.data_dir
        if data_dir == DEMO_DATA_DIR:
            shutil.rmtree(data_dir, ignore_errors=True)
        data_dir.mkdir(parents=True, exist_ok=True)
        await demo.demo(
            settings, environ, dispatchers=arguments.dispatchers, data_dir=data_dir.resolve()
        )

    return _until_signal(show, cancel=True)


def _send(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    name: str = arguments.source
    own = name == sources.DEFAULT
    settings, found = _configured(environ, require=("WDS_HMAC_SECRET",) if own else ())
    source = sources.default_source(settings.hmac_secrets) if own else found.get(name)
    if source is None:
        known = ", ".join([sources.DEFAULT, *found])
        msg = f"{name} is no source; {_config_file(environ)} and WDS_HMAC_SECRET make {known}"
        raise StartError(msg)
    path = "/webhooks/ingest" if own else f"/webhooks/ingest/{name}"
    url = arguments.url or f"http://{settings.host}:{settings.port}{path}"
    if arguments.count is not None:
        seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
        postings = _samples(arguments.count, seed, source.scheme.name)
        total = arguments.count
    else:
        key = arguments.idempotency_key or secrets.token_hex(16)
        body = _read(arguments.file)
        total, postings = 1, iter([sending.Posting(body, key, arguments.event_type)])
    try:
        source.scheme.sign(source.keys[0], b"", EventInfo("", None, 0))
    except ValueError as error:
        msg = f"source {name}: {error}"
        raise StartError(msg) from None
    return asyncio.run(sending.send(url, source, postings, total))


def _check(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = Settings.load(environ, require=("WDS_MONGO_URL",))
    found = asyncio.run(
        check.check(settings, overdue_s=arguments.overdue, payloads=arguments.payloads)
    )
    return FAILED if found else 0


def _samples(count: int, seed: int, sender: str) -> Iterator[sending.Posting]:
    for number, sample in enumerate(sample_events.generate(count, seed, sender)):
        yield sending.Posting(sample.body, f"sample-{seed}-{number}", sample.event_type)


def _configured(
    environ: Mapping[str, str], *, require: tuple[str, ...]
) -> tuple[Settings, dict[str, Source]]:
    """Read the settings and the sources, and tell of the mistakes in both at once."""
    problems: list[str] = []
    settings, found = Settings(), dict[str, Source]()
    try:
        settings = Settings.load(environ, require=require)
    except SettingsError as error:
        problems += error.problems
    try:
        found = _sources(environ)
    except SettingsError as error:
        problems += error.problems
    if problems:
        raise SettingsError(problems)
    return settings, found


def _sources(environ: Mapping[str, str]) -> dict[str, Source]:
    file = _config_file(environ)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        if file == DEFAULT_CONFIG:
            return {}
        raise SettingsError([f"WDS_CONFIG: there is no file {file}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError([f"WDS_CONFIG: cannot read {file}: {reason}"]) from None
    return sources.load(text, environ, str(file))


def _config_file(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("WDS_CONFIG", "").strip() or DEFAULT_CONFIG)


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        msg = f"cannot read {file}: {error.strerror}"
        raise StartError(msg) from error


def _until_signal(
    serve: Callable[[asyncio.Event], Awaitable[None]], *, cancel: bool = False
) -> int:
    """Run `serve` with an event that SIGTERM and SIGINT set; a second signal cancels it.

    With `cancel`, the first one does.
    """

    async def run() -> int:
        stop = asyncio.Event()
        task = asyncio.ensure_future(serve(stop))
        signals: list[int] = []

        def on_signal(number: int) -> None:
            if cancel or stop.is_set():
                task.cancel()
            signals.append(number)
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        try:
            await task
        except asyncio.CancelledError:
            return 128 + (signals[0] if signals else 0)
        return 0

    # What is loaded by now stays, and looking through it for garbage delays whoever waits.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


# -- arguments -------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    # Before the command or after it; suppressed, or the second default would undo the first.
    logging = argparse.ArgumentParser(add_help=False)
    logging.add_argument(
        "--log-format",
        choices=logs.FORMATS,
        default=argparse.SUPPRESS,
        help="default: console on a terminal, else json",
    )
    logging.add_argument(
        "--log-level",
        choices=logs.LEVELS,
        default=argparse.SUPPRESS,
        help="the least that is logged (default: info)",
    )
    parser = argparse.ArgumentParser(
        prog="wds",
        description="Webhook delivery on MongoDB. Settings: WDS_* variables, exported or in .env.",
        parents=[logging],
    )
    parser.add_argument("--version", action="version", version=f"wds {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:  # noqa: ANN401
        added = commands.add_parser(name, help=text, description=text, parents=[logging])
        added.set_defaults(run=run)
        return added

    command("ingest", _ingest, "receive, verify and store events (WDS_PORT)")
    command("dispatcher", _dispatcher, "deliver due events; run as many as you like")
    command("mock-downstream", _mock, "a limited, unreliable receiver to deliver to")
    everything = command("up", _up, "everything on this machine, until Ctrl-C")
    first_look = command("demo", _demo, "everything, 20 events, and what became of each")
    for added, data_dir in ((everything, DEFAULT_DATA_DIR), (first_look, DEMO_DATA_DIR)):
        added.add_argument(
            "--dispatchers", type=operator_arguments.positive, default=2, metavar="N"
        )
        added.add_argument(
            "--data-dir",
            type=Path,
            default=data_dir,
            help=f"where the embedded engines keep data (default: {data_dir})",
        )
    post = command("send", _send, "sign and post a file, standard input or samples")
    post.add_argument("file", nargs="?", default="-", help="JSON to post; - is standard input")
    post.add_argument(
        "--count", type=operator_arguments.positive, metavar="N", help="post N samples instead"
    )
    post.add_argument("--seed", type=int, help="makes the samples repeatable")
    post.add_argument(
        "--source",
        default=sources.DEFAULT,
        metavar="NAME",
        help="sign as this source's provider does; wds.toml has them (default: %(default)s)",
    )
    post.add_argument("--url", help="default: the source's route on WDS_HOST and WDS_PORT")
    post.add_argument("--event-type", help="where the provider has it in a header")
    post.add_argument("--idempotency-key", help="likewise; default: a random one")
    audit = command("check", _check, "audit the database against the guarantees")
    audit.add_argument(
        "--overdue",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long an event may be due before it counts as stuck (default: 60)",
    )
    audit.add_argument("--payloads", action="store_true", help="compare every payload's hash too")
    operator_arguments.add(command)
    return parser


def run() -> None:
    """Run one command as this process, and end it.

    Not by returning: the interpreter would wait for the driver's threads, which may be stuck in
    a call to a server that does not answer, long after all else is settled.
    """
    status = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # whoever read it has gone
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
