"""A connection that a poller reads, made of functions."""

from collections.abc import Callable

import pytest

from brewos_relay.wire.poller import PolledConnection


def no_failure(_error: Exception) -> None:
    pytest.fail("nothing failed")


class Calls(PolledConnection):
    """An owner of a socket, made of two or three functions."""

    def __init__(
        self,
        read: Callable[[], bytes | None],
        take: Callable[[bytes], None],
        fail: Callable[[Exception], None] = no_failure,
    ) -> None:
        self._calls = read, take, fail

    def read(self) -> bytes | None:
        return self._calls[0]()

    def take(self, data: bytes) -> None:
        self._calls[1](data)

    def fail(self, error: Exception) -> None:
        self._calls[2](error)


class NoMemoryOnce(dict[int, PolledConnection]):
    """The connections of a poller, which fails when it first looks for one."""

    fails = True

    def __getitem__(self, fd: int) -> PolledConnection:
        if self.fails:
            self.fails = False
            raise MemoryError
        return super().__getitem__(fd)
