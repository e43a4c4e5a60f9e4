"""The lease queue as a dispatcher drives it, for the tests of replay and cancel."""

from __future__ import annotations

import pytest

from tests.integration.api.operators import Queue


@pytest.fixture
def queue(store, db):
    """Drive the lease queue as a dispatcher would, with two attempts an event."""
    return Queue(store, db)
