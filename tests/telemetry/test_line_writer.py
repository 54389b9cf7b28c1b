import errno
import io
import os
import select
import threading
import time
from collections.abc import Iterator

import pytest

from brewos_relay.telemetry import line_writer
from brewos_relay.telemetry.line_writer import LineWriter, write_last_line
from support.steady_clock import SteadyClock


class Pipe:
    def __init__(self) -> None:
        reading, writing = os.pipe()
        self.reader, self.stream = os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "w")
        self.descriptor = writing
        self.writers: list[LineWriter] = []

    def writer(self) -> LineWriter:
        self.writers.append(LineWriter(self.stream))
        return self.writers[-1]

    def fill(self) -> int:
        os.set_blocking(self.descriptor, False)
        filled = 0
        try:
            while True:
                filled += os.write(self.descriptor, b"." * 1024)
        except BlockingIOError:
            return filled

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self.reader.read(count - len(data))
        return data

    def close(self) -> None:
        self.reader.close()
        for writer in self.writers:  # none may write to the next file with this descriptor
            while not writer._is_done():
                time.sleep(0.001)
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_lines_come_in_their_order_from_all_threads() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream)

    def put(name: str) -> None:
        for number in range(500):
            writer.put(f"{name} {number}")

    threads = [threading.Thread(target=put, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    written = stream.getvalue().splitlines()
    for name in "abc":
        assert [line for line in written if line.startswith(name)] == [f"{name} {n}" for n in range(500)]
    assert writer.dropped == 0


@pytest.mark.parametrize("is_blocking", [True, False])
def test_writing_does_not_wait_for_a_full_pipe(
    pipe: Pipe, is_blocking: bool, steady_clock: SteadyClock
) -> None:
    filled = pipe.fill()
    os.set_blocking(pipe.descriptor, is_blocking)
    writer = pipe.writer()
    began_s = steady_clock.current_time()
    writer.put("one")
    writer.put("two")
    assert steady_clock.current_time() - began_s < 1
    assert not writer.flush(0.05)
    assert pipe.read(filled + 8)[filled:] == b"one\ntwo\n"
    writer.close()


def test_the_queue_of_lines_is_bounded_in_size(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "CHARS_AT_MOST", 1000)
    writer = pipe.writer()
    # A pipe does not take the first line whole: its beginning shows that the thread waits with it.
    first = "-" * 1_000_000
    writer.put(first)
    assert select.select([pipe.reader], [], [], 10)[0] == [pipe.reader]
    for _ in range(20):
        writer.put("x" * 100)
    assert writer.dropped == 10
    expected = f"{first}\n".encode() + 10 * (b"x" * 100 + b"\n") + b"10 lines were dropped\n"
    assert pipe.read(len(expected)) == expected
    writer.close()


def test_each_gap_is_reported_where_it_occurred(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "LINES_AT_MOST", 2)
    writer = pipe.writer()
    first = "-" * 1_000_000
    for gap in (1, 2):
        writer.put(first)
        assert select.select([pipe.reader], [], [], 10)[0] == [pipe.reader]
        for number in range(2 + gap):
            writer.put(str(number))
        expected = f"{first}\n0\n1\n{gap} lines were dropped\n".encode()
        assert pipe.read(len(expected)) == expected
    writer.close()


def test_flush_of_a_stalled_writer_waits_only_once(pipe: Pipe, steady_clock: SteadyClock) -> None:
    pipe.fill()
    writer = pipe.writer()
    writer.put("one")
    assert not writer.flush(0.2)
    began_s = steady_clock.current_time()
    assert not writer.flush(5)
    assert steady_clock.current_time() - began_s < 1


def test_lines_that_cannot_be_written_are_counted_and_reported_later(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    full = True

    def write(descriptor: int, data: bytes) -> int:
        if full and not data.startswith(b"first"):
            raise OSError(errno.ENOSPC, "no space left")
        return really(descriptor, data[:6] if full else data)

    really = os.write
    monkeypatch.setattr(os, "write", write)
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream)
        writer.put("first")
        writer.put("second")
        assert writer.flush()
        assert writer.is_broken
        full = False
        writer.put("third")
        assert writer.flush()
        assert reader.read(1000) == b"first\n1 lines were dropped\nthird\n"
        assert writer.dropped == 1
        writer.close()


def test_a_line_after_half_a_line_begins_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    answers: list[int | None] = [4, None]

    def write(descriptor: int, data: bytes) -> int:
        if not answers:
            return really(descriptor, data)
        if (most := answers.pop(0)) is None:
            raise OSError(errno.EIO, "gone")
        return really(descriptor, data[:most])

    really = os.write
    monkeypatch.setattr(os, "write", write)
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream)
        writer.put("a whole line")
        assert writer.flush()
        writer.put("next")
        assert writer.flush()
        assert reader.read(1000) == b"a wh\n1 lines were dropped\nnext\n"
        writer.close()


def test_a_closed_reader_breaks_only_the_writer(pipe: Pipe) -> None:
    writer = pipe.writer()
    pipe.reader.close()
    for _ in range(3):
        writer.put("lost")
        assert writer.flush()
    assert writer.is_broken
    assert writer.dropped == 3
    writer.close()


def test_writing_to_a_closed_stream_is_ignored() -> None:
    stream = io.StringIO()
    stream.close()
    writer = LineWriter(stream)
    writer.put("lost")
    writer.close()
    assert writer.dropped == 1
    writer.put("after the end")
    assert writer.dropped == 2


def test_writing_does_not_fail_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    stream = io.StringIO()
    writer = LineWriter(stream)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        writer.put("early")
        assert writer.flush()
    writer.put("late")
    writer.close()
    assert stream.getvalue() == "early\nlate\n"


def test_last_line_has_a_deadline(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "LineWriter", lambda _stream: pipe.writer())
    pipe.fill()
    began_s = time.monotonic()
    write_last_line(pipe.stream, "the end")
    assert time.monotonic() - began_s < line_writer.FLUSH_S + 3
