"""A free TCP port, for a program that cannot choose one itself."""

import random
import socket
from typing import Final

_PORTS: Final = range(10_000, 22_000)
"""Below the range that systems give to outgoing connections, which could take the port first.

A Redis Cluster needs the port that is 10,000 higher as well.
"""


def free_port() -> int:
    """Find a port that no program listens on."""
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no free port was found between {_PORTS.start} and {_PORTS.stop - 1}")
