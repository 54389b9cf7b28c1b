"""SharedBudgets: rate limits that count on all instances together."""

import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import trio

from brewos_relay.cluster.broker import BrokerConnection, BrokerError
from brewos_relay.instances import Bucket, BucketsTaken

WAIT_S: Final = 0.05
"""How long a request waits for the bus at most. Then the budget of this instance alone decides."""
SLOW_S: Final = 1.0
SLOW_WAIT_S: Final = 0.005
"""After the bus took too long, requests wait only this long for the next second. What they take still counts
on the bus, if late."""


class SharedBudgets:
    """Token buckets on the bus; a `protocols.SharedBudgets`.

    The names of buckets contain addresses of people and networks, so the bus gets a code of each name, made
    with `secret`. Instances need the same secret to share a bucket.
    """

    def __init__(self, connection: Callable[[], BrokerConnection | None], *, secret: bytes) -> None:
        self._connection = connection
        self._secret = secret
        self._slow_until = -float("inf")
        self.alone = 0
        """How often this instance counted alone, because the bus did not answer in time."""

    async def take(self, buckets: Sequence[Bucket]) -> BucketsTaken:
        """Take a token from each bucket, or from none if one of them is empty.

        Buckets that the bus did not answer for in time are missing in the result.
        """
        taken: list[Bucket] = []
        if (connection := self._connection()) is None:
            self.alone += 1
            return BucketsTaken(taken)
        with self._bounded():
            for bucket in buckets:
                if not await connection.take_budget(
                    self._code(bucket.name), amount=1, per_s=bucket.per_s, burst=bucket.burst
                ):
                    await self._give_back(connection, taken)
                    return BucketsTaken((), empty=bucket)
                taken.append(bucket)
        if len(taken) < len(buckets):
            self.alone += 1
        return BucketsTaken(taken)

    async def give_back(self, buckets: Sequence[Bucket]) -> None:
        """Return a token to each bucket. It is lost if the bus does not answer in time."""
        connection = self._connection()
        if connection is not None:
            with self._bounded():
                await self._give_back(connection, buckets)

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """End the block when the bus is away or takes too long."""
        is_slow = trio.current_time() < self._slow_until
        with trio.move_on_after(SLOW_WAIT_S if is_slow else WAIT_S) as waiting, suppress(BrokerError):
            yield
        if not waiting.cancelled_caught:
            self._slow_until = -float("inf")
        elif not is_slow:
            self._slow_until = trio.current_time() + SLOW_S

    async def _give_back(self, connection: BrokerConnection, buckets: Sequence[Bucket]) -> None:
        for bucket in buckets:
            await connection.refund_budget(self._code(bucket.name), amount=1, burst=bucket.burst)

    def _code(self, name: str) -> str:
        return hmac.new(self._secret, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]
