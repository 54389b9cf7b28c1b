import socket

import ports
import pytest


def test_port_is_below_those_of_outgoing_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    port = ports.free_port()
    assert 10_000 <= port < 32_768
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", [busy] * 99 + [port])
        assert ports.free_port() == port
