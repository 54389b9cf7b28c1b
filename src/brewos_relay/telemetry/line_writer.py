"""Lines that are written by a thread, so that a pipe or a terminal that is not read blocks nothing else."""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

LINES_AT_MOST: Final = 10_000
CHARS_AT_MOST: Final = 4 * 1024 * 1024
"""How much waits to be written; more is dropped."""
FLUSH_S: Final = 2.0
"""The longest that the end of a process waits for its last lines."""

_AT_ONCE: Final = 256
"""How many lines are written together."""
_GATHER_S: Final = 0.005
"""How long the first of them waits for others: for each alone, the thread would interrupt all others."""
_LOOK_EVERY_S: Final = 0.002


class LineWriter:
    """Writes lines to a stream, in their order; `put` never blocks.

    When too many lines wait, later ones are dropped. As soon as there is room again, a line of `tell_dropped`
    takes their place.

    **Owns:** a daemon thread, from the first line on.
    **Ends when:** `close` is called, or with the process: a thread that is blocked does not keep it.
    """

    def __init__(self, stream: TextIO, *, tell_dropped: Callable[[int], str] | None = None) -> None:
        """Take a stream. One with a descriptor is written to by that, past the stream's own buffer."""
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._descriptor = _descriptor_of(stream)
        self._tell_dropped = tell_dropped or _tell_dropped
        self.dropped = 0
        """How many lines were dropped, or could not be written."""
        self.is_broken = False
        """Whether the last attempt to write failed: say, the reader of a pipe has gone."""
        self._written = 0
        self._untold = 0
        # The interpreter may run finalizers anywhere, and these may log: a thread must be able to come again.
        self._lock = threading.RLock()
        self._waiting: deque[str | int] = deque()  # a number stands for as many dropped lines
        self._waiting_chars = 0
        self._is_mid_line = False
        self._is_idle = True
        self._wake = threading.Lock()
        self._wake.acquire()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._stalled_at: int | None = None

    def put(self, line: str) -> None:
        """Leave a line, without its end, to the thread; it is dropped if too much waits."""
        with self._lock:
            if len(self._waiting) >= LINES_AT_MOST or self._waiting_chars >= CHARS_AT_MOST or self._is_closed:
                self._drop(1)
                return
            if self._untold:
                self._waiting.append(self._untold)
                self._untold = 0
            self._waiting.append(line)
            self._waiting_chars += len(line)
            if self._is_idle:
                self._start()

    def drop(self) -> None:
        """Count a line that never came to be."""
        with self._lock:
            self._drop(1)

    def flush(self, within_s: float = FLUSH_S) -> bool:
        """Wait until everything is written; False if that takes longer, or if nothing moved since it did."""
        deadline_s = time.monotonic() + within_s
        while not self._is_done():
            if time.monotonic() >= deadline_s or self._stalled_at == self._written:
                self._stalled_at = self._written
                return False
            time.sleep(_LOOK_EVERY_S)
        return True

    def close(self) -> None:
        """Write what waits, for 2 s at the longest, and end the thread."""
        self.flush()
        with self._lock:
            self._is_closed = True
            if self._is_idle and self._thread is not None:
                self._is_idle = False
                self._wake.release()

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._untold += count

    def _start(self) -> None:
        """Wake the thread; without one, and with no more to be had, lines wait for the next attempt."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            with suppress(RuntimeError, MemoryError):
                thread.start()
                self._thread = thread
            if self._thread is None:
                return
        self._is_idle = False
        self._wake.release()

    def _is_done(self) -> bool:
        with self._lock:
            return self._is_idle and (not self._waiting or self._thread is None)

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            time.sleep(_GATHER_S)
            while batch := self._take():
                self._write(batch)
            if self._is_closed:
                return

    def _take(self) -> list[str | int]:
        """Take what to write next; note that the thread has nothing to do if there is nothing."""
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            self._waiting_chars -= sum(len(line) for line in batch if isinstance(line, str))
            if not batch and self._untold and not self.is_broken:
                batch.append(self._untold)
                self._untold = 0
            self._is_idle = not batch
            return batch

    def _write(self, batch: list[str | int]) -> None:
        ends: list[int] = []
        data = bytearray(b"\n" if self._is_mid_line else b"")
        for each in batch:
            line = each if isinstance(each, str) else self._tell_dropped(each)
            data += line.encode(self._encoding, "backslashreplace") + b"\n"
            ends.append(len(data))
        written = self._write_bytes(bytes(data))
        self.is_broken = written < len(data)
        if written:
            self._is_mid_line = data[written - 1] != 0x0A
        with self._lock:
            self._written += written
            for each, end in zip(batch, ends, strict=True):
                if end > written and isinstance(each, str):
                    self._drop(1)
                elif end > written and isinstance(each, int):
                    self._untold += each

    def _write_bytes(self, data: bytes) -> int:
        """Write, and wait for as long as that takes; return how much could be written before it failed."""
        if self._descriptor is None:
            with suppress(OSError, ValueError):  # a stream that was closed
                self._stream.write(data.decode(self._encoding))
                self._stream.flush()
                return len(data)
            return 0
        written = 0
        while written < len(data):
            try:
                written += os.write(self._descriptor, data[written:])
            except BlockingIOError:  # whoever shares the terminal or the pipe wants it so
                _wait_writable(self._descriptor)
            except OSError:
                break
        return written


def _descriptor_of(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError, ValueError):
        return None


def _wait_writable(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


def _tell_dropped(count: int) -> str:
    return f"{count} lines were dropped"


def write_last_line(stream: TextIO, line: str) -> None:
    """Write the last line of a process, for 2 s at the longest: its end must not depend on a reader."""
    writer = LineWriter(stream)
    with suppress(OSError, ValueError):
        stream.flush()
    writer.put(line)
    writer.flush()
