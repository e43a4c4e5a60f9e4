"""The errors that cross package boundaries, each named by the stage that fails.

An error that one package raises and the same package handles is defined there, as a subclass of
`WdsError`. Nothing here knows about HTTP servers or drivers. `Refusal` is the one error that a
sender or an operator sees; `web.error_envelope` turns it into the response.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class WdsError(Exception):
    """Base of the errors that wds raises on purpose."""


class StartError(WdsError):
    """A process cannot start. The message is one sentence that says how to fix it."""


class SettingsError(StartError):
    """One or more settings are missing, malformed or contradict each other."""

    def __init__(self, problems: list[str]) -> None:
        """Keep `problems`, each beginning with the setting's name."""
        super().__init__("; ".join(problems))
        self.problems = problems


class StandaloneRefusedError(StartError):
    """MongoDB is not a replica set, so an acknowledged write could be lost."""


class StoreUnavailableError(WdsError):
    """MongoDB did not confirm the operation in time. Whether it took effect is unknown."""


class SearchTooSlowError(StoreUnavailableError):
    """MongoDB ended a search at its time limit. A search over fewer events may succeed."""


class LimiterUnavailableError(WdsError):
    """Redis did not answer in time, so nothing may be sent."""


class QueueFullError(WdsError):
    """A bounded queue is full. The same call may succeed later."""


@dataclass(frozen=True, slots=True)
class Detail:
    """One problem of a request.

    Attributes:
        field: dotted path; empty for the whole body.
        message: what is wrong there, for people.
    """

    field: str
    message: str


@dataclass(eq=False)
class Refusal(WdsError):  # noqa: N818 - it is a response, not a fault of wds
    """The request is answered with an error envelope.

    Attributes:
        status: HTTP status, 400-599.
        code: stable machine-readable reason, snake_case.
        message: one sentence for people, without secrets and without bytes of the request.
        details: every problem found, where there can be several.
        event_id: the event that the request is about, for the log.
        retry_after_s: seconds for a `Retry-After` header, if the same request may succeed later.
    """

    status: int
    code: str
    message: str
    details: tuple[Detail, ...] = field(default=())
    retry_after_s: int | None = None
    event_id: str | None = None


def wrong_shape(*details: Detail) -> Refusal:
    """Return the 422 for a request whose fields are missing, unknown or malformed."""
    return Refusal(422, "invalid_request", "the request has the wrong shape", details)
