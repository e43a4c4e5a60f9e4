"""Every error the package raises on purpose, named by the stage that fails.

Nothing here knows about HTTP servers or drivers. `Refusal` is the one error that a
sender or an operator sees; `envelope` turns it into the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class WdsError(Exception):
    """Base of all errors raised on purpose."""


class StartError(WdsError):
    """A process cannot start. The message is one sentence with the cure in it."""


class SettingsError(StartError):
    """One or more settings are missing, malformed or contradict each other."""

    def __init__(self, problems: list[str]) -> None:
        """Keep `problems`, each beginning with the setting's name."""
        super().__init__("; ".join(problems))
        self.problems = problems


class StandaloneRefusedError(StartError):
    """MongoDB is not a replica set, so an acknowledged write could be lost."""


class StoreUnavailableError(WdsError):
    """MongoDB did not confirm the operation in time; whether it happened is unknown."""


class SearchTooSlowError(StoreUnavailableError):
    """MongoDB ended a search at its time limit; one over fewer events may succeed."""


class LimiterUnavailableError(WdsError):
    """Redis did not answer in time, so nothing may be sent."""


class QueueFullError(WdsError):
    """A bounded queue has no room; the caller should come back later."""


@dataclass(frozen=True, slots=True)
class Detail:
    """One thing wrong with a request: where (`field`, dotted path, may be empty) and what."""

    field: str
    message: str


@dataclass(eq=False)
class Refusal(WdsError):  # noqa: N818 - the field's word for a 4xx; it is an answer, not a fault
    """A request is answered with an error envelope.

    Attributes:
        status: HTTP status, 400-599.
        code: stable machine-readable reason, snake_case.
        message: one sentence for people; never contains a secret or raw request bytes.
        details: every problem found, when there can be several.
        event_id: the one event that it concerns, for the log.
        retry_after_s: seconds for a `Retry-After` header, if the same request may succeed later.
    """

    status: int
    code: str
    message: str
    details: tuple[Detail, ...] = field(default=())
    retry_after_s: int | None = None
    event_id: str | None = None
