"""Delivery: messages that are sent to several peers."""

from collections.abc import Sequence
from typing import final

from brewos_relay.compiling import mypyc_attr
from brewos_relay.messages import Message


@final
@mypyc_attr(acyclic=True, free_list_len=1)
class Delivery:
    """Messages that are sent to several peers, with one write for each.

    A peer sends `messages`, in order. `encoded` caches their frames: the first peer that needs them stores
    them here for the others.
    """

    __slots__ = ("encoded", "messages")

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.encoded: bytes | None = None
