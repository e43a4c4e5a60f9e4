"""Ports for the embedded servers: free ones, and never one that was given before."""

from __future__ import annotations

import itertools
import socket

import pytest

from wds.domain.errors import StartError
from wds.local import embedded_engines


def test_no_port_is_given_twice():
    given = [embedded_engines.free_port() for _ in range(1000)]
    assert len(set(given)) == 1000
    assert {*given} <= {*embedded_engines._PORTS}


def test_a_port_in_use_is_passed_over(monkeypatch):
    free = embedded_engines.free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(embedded_engines, "_ports", itertools.cycle([port, port, free]))
        assert embedded_engines.free_port() == free


def test_when_all_are_in_use_it_says_so(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(embedded_engines, "_ports", itertools.repeat(taken.getsockname()[1]))
        with pytest.raises(StartError, match="no TCP port from 10240 to 32767 is free"):
            embedded_engines.free_port()
