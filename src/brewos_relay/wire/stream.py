"""A transport as a Trio stream, for those who want to wait for what they read and write."""

import math

import trio

from brewos_relay.wire.transport import READ_BYTES, Transport


class TransportStream(trio.abc.HalfCloseableStream):
    """A Trio stream over a transport, plain or TLS. **Owns:** the transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._left = b""

    def detach(self) -> tuple[Transport, bytes]:
        """Give the transport to the caller, and the data that was read from it and not taken.

        Closing the stream still closes the transport.
        """
        left, self._left = self._left, b""
        return self._transport, left

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for something and return it, or empty bytes at the end; see `trio.abc.ReceiveStream`."""
        transport = self._transport
        self._check_open()
        await trio.lowlevel.checkpoint()
        data: bytes | None = self._left
        if not data:
            while (data := transport.read()) is None:
                await transport.wait_readable()
            if transport.broken:
                raise trio.BrokenResourceError("the connection is broken")
        most_bytes = READ_BYTES if max_bytes is None else max_bytes
        self._left = data[most_bytes:]
        return data[:most_bytes]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of it, and wait until the system has it; see `trio.abc.SendStream`."""
        transport = self._transport
        self._check_open()
        await trio.lowlevel.checkpoint()
        taken = transport.write(bytes(data)) if data else True
        if transport.outbox_bytes:
            await transport.flush(stall_s=math.inf)
        if transport.broken or not taken:
            raise trio.BrokenResourceError("the connection is broken")

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the system has room; see `trio.abc.SendStream`."""
        self._check_open()
        await trio.lowlevel.wait_writable(self._transport.fd)

    async def send_eof(self) -> None:
        """Tell the peer that nothing more will come."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        self._transport.finish_writing()

    async def aclose(self) -> None:
        """Close the connection."""
        self._transport.close()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._transport.closed:
            raise trio.ClosedResourceError("this stream was closed")
