"""LineWriter: writes lines in a thread, so that an unread pipe or terminal does not block the process."""

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
"""The largest queue of lines to write. Further lines are dropped."""
FLUSH_S: Final = 2.0
"""How long the exit of a process waits for its last lines."""

_AT_ONCE: Final = 256
"""The most lines in one write."""
_GATHER_S: Final = 0.005
"""How long the first line waits for others. One wake-up per line would interrupt other threads too often."""
_LOOK_EVERY_S: Final = 0.002


class LineWriter:
    """Writes lines to a stream, in order; `put` never blocks.

    While too many lines wait, later ones are dropped. As soon as there is room again, one line made by
    `tell_dropped` replaces them.

    **Owns:** a daemon thread, from the first line on.
    **Ends when:** `close` is called, or the process exits, even if the thread is blocked.
    """

    def __init__(self, stream: TextIO, *, tell_dropped: Callable[[int], str] | None = None) -> None:
        """Prepare to write to a stream. If it has a file descriptor, its own buffer is bypassed."""
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._descriptor = _descriptor_of(stream)
        self._tell_dropped = tell_dropped or _tell_dropped
        self.dropped = 0
        """How many lines were dropped or could not be written."""
        self.is_broken = False
        """Whether the last write failed, for example because the reader of a pipe has gone."""
        self._written = 0
        self._untold = 0
        # Reentrant: the interpreter may run a finalizer anywhere, and the finalizer may log.
        self._lock = threading.RLock()
        self._waiting: deque[str | int] = deque()  # a number stands for that many dropped lines
        self._waiting_chars = 0
        self._is_mid_line = False
        self._is_idle = True
        self._wake = threading.Lock()
        self._wake.acquire()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._stalled_at: int | None = None

    def put(self, line: str) -> None:
        """Queue a line, without its line break. Drop it if the queue is full."""
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
        """Count a line that could not be made."""
        with self._lock:
            self._drop(1)

    def flush(self, within_s: float = FLUSH_S) -> bool:
        """Wait until everything is written. Return False at the timeout.

        Return False at once if an earlier flush timed out and nothing was written since.
        """
        deadline_s = time.monotonic() + within_s
        while not self._is_done():
            if time.monotonic() >= deadline_s or self._stalled_at == self._written:
                self._stalled_at = self._written
                return False
            time.sleep(_LOOK_EVERY_S)
        return True

    def close(self) -> None:
        """Write the queued lines, for at most 2 s, and end the thread."""
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
        """Start or wake the thread. If no thread can be started, the lines wait for the next attempt."""
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
        """Take the next lines from the queue, and mark the thread as idle if there are none."""
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
        """Write the data, however long that takes. Return how many bytes were written before a failure."""
        if self._descriptor is None:
            with suppress(OSError, ValueError):  # a closed stream
                self._stream.write(data.decode(self._encoding))
                self._stream.flush()
                return len(data)
            return 0
        written = 0
        while written < len(data):
            try:
                written += os.write(self._descriptor, data[written:])
            except BlockingIOError:  # another process that shares the descriptor made it non-blocking
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
    """Write the last line of a process, for at most 2 s: its exit must not depend on a reader."""
    writer = LineWriter(stream)
    with suppress(OSError, ValueError):
        stream.flush()
    writer.put(line)
    writer.flush()
