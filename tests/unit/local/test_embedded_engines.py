"""Ports for the embedded servers."""

from __future__ import annotations

import itertools
import socket

import pytest

from wds.domain.errors import StartError
from wds.local import embedded_engines


def test_free_port_never_returns_a_port_twice():
    ports = [embedded_engines.free_port() for _ in range(1000)]
    assert len(set(ports)) == 1000
    assert {*ports} <= {*embedded_engines._PORTS}


def test_free_port_skips_a_port_in_use(monkeypatch):
    free = embedded_engines.free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(embedded_engines, "_ports", itertools.cycle([port, port, free]))
        assert embedded_engines.free_port() == free


def test_free_port_raises_if_all_ports_are_in_use(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(embedded_engines, "_ports", itertools.repeat(listener.getsockname()[1]))
        with pytest.raises(StartError, match="no TCP port from 10240 to 32767 is free"):
            embedded_engines.free_port()
