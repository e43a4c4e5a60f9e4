"""The settings and the sources of a process, read together so that all mistakes show at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wds.config import Settings
from wds.domain.errors import SettingsError
from wds.ingestion import sources

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wds.ingestion.sources import Source

DEFAULT_FILE = Path("wds.toml")


def load(
    environ: Mapping[str, str], *, require: tuple[str, ...]
) -> tuple[Settings, dict[str, Source]]:
    """Return the settings and the configured sources, by name; the default source is not in them.

    `require` names the variables that the command cannot do without.

    Raises:
        SettingsError: every mistake in the environment and in the file.
    """
    problems: list[str] = []
    settings = Settings()
    configured: dict[str, Source] = {}
    try:
        settings = Settings.load(environ, require=require)
    except SettingsError as error:
        problems += error.problems
    try:
        configured = _load_sources(environ)
    except SettingsError as error:
        problems += error.problems
    if problems:
        raise SettingsError(problems)
    return settings, configured


def sources_file(environ: Mapping[str, str]) -> Path:
    """Return the file that WDS_CONFIG names, else `wds.toml` in the working directory."""
    return Path(environ.get("WDS_CONFIG", "").strip() or DEFAULT_FILE)


def _load_sources(environ: Mapping[str, str]) -> dict[str, Source]:
    file = sources_file(environ)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        if file == DEFAULT_FILE:
            return {}
        raise SettingsError([f"WDS_CONFIG: there is no file {file}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError([f"WDS_CONFIG: cannot read {file}: {reason}"]) from None
    return sources.load(text, environ, str(file))
