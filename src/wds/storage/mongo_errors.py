"""Errors of MongoDB: which are transient, and which writes of a bulk found their id taken. Pure."""

from __future__ import annotations

from typing import Any

from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    ExecutionTimeout,
    OperationFailure,
    WTimeoutError,
)

from wds.domain.errors import SearchTooSlowError, StoreUnavailableError

DUPLICATE_KEY = 11000
# https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
_TRANSIENT_CODES = frozenset(
    {
        6,  # HostUnreachable
        7,  # HostNotFound
        43,  # CursorNotFound
        50,  # MaxTimeMSExpired
        64,  # WriteConcernTimeout
        89,  # NetworkTimeout
        91,  # ShutdownInProgress
        100,  # UnsatisfiableWriteConcern
        112,  # WriteConflict
        133,  # FailedToSatisfyReadPreference
        189,  # PrimarySteppedDown
        202,  # NetworkInterfaceExceededTimeLimit
        262,  # ExceededTimeLimit
        9001,  # SocketException
        10107,  # NotWritablePrimary
        11600,  # InterruptedAtShutdown
        11602,  # InterruptedDueToReplStateChange
        13435,  # NotPrimaryNoSecondaryOk
        13436,  # NotPrimaryOrSecondary
    }
)


def is_transient(error: BaseException) -> bool:
    """Tell whether the same call may succeed later: transport error, failover or time limit."""
    if isinstance(error, SearchTooSlowError):
        return False
    if isinstance(error, (StoreUnavailableError, ConnectionFailure, WTimeoutError)):
        return True
    if isinstance(error, BulkWriteError):
        details: Any = error.details
        codes = {each["code"] for each in details["writeErrors"]} - {DUPLICATE_KEY}
        return bool(details["writeConcernErrors"]) or bool(codes & _TRANSIENT_CODES)
    if isinstance(error, ExecutionTimeout):
        return True
    return isinstance(error, OperationFailure) and error.code in _TRANSIENT_CODES


def duplicates(error: BulkWriteError) -> list[int]:
    """Return the indexes that were refused as duplicates; raise `error` if it has other causes."""
    details: Any = error.details
    others = [each for each in details["writeErrors"] if each["code"] != DUPLICATE_KEY]
    if others or details["writeConcernErrors"]:
        raise error
    return [each["index"] for each in details["writeErrors"]]
