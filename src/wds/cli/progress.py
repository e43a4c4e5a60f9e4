"""The progress bar of commands that take long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn


def progress_bar(text: str, console: Console, time: ProgressColumn | None = None) -> Progress:
    """Return a progress bar. It is drawn on a terminal only, not into files and pipes.

    `time` is the column of the time; without it, the time elapsed.
    """
    return Progress(
        TextColumn(text),
        BarColumn(),
        MofNCompleteColumn(),
        time or TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
