"""A free TCP port, for a server that cannot choose one itself."""

import random
import socket

PORTS = range(22_000, 32_000)
"""Below the range that systems give to outgoing connections, which may use up all of it in a storm."""


def free_port() -> int:
    """Find a port that no program listens on. Raises OSError if there is none."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port was found between {PORTS.start} and {PORTS.stop - 1}")
