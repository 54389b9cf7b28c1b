"""Mutate valid inputs into almost valid ones."""

import random
from collections.abc import Sequence
from typing import Final

INTERESTING: Final = (
    b"",
    b"\0",
    b"\xff",
    b"\x7f\xff",
    b"\x80\x00",
    b"\xff" * 8,
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"%00",
    b"\\u0000",
    b"\\ud800",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xc0\x80",
    b"1e999",
    b"NaN",
    b"-0",
    b"18446744073709551616",
    b"[" * 300,
    b'{"a":' * 300,
    b"\x81\xa1a" * 300,
    b"\x91" * 300,
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc1",
    b'"type"',
    b"\xa4type",
)
"""Inputs that have broken parsers."""
MOST_BYTES: Final = 70_000


class Mutator:
    """Changes inputs at random; the same seed makes the same changes."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def mutated(self, corpus: Sequence[bytes]) -> bytes:
        """Return an input of the corpus, mostly changed in a few places."""
        data = bytearray(self.chance.choice(corpus))
        for _ in range(self.chance.choice((0, 1, 1, 2, 3, 8))):
            self._change(data, corpus)
        return bytes(data[:MOST_BYTES])

    def split(self, data: bytes) -> list[bytes]:
        """Cut data into pieces, as a network might."""
        if not data:
            return []
        cuts = sorted(self.chance.randrange(len(data)) for _ in range(self.chance.choice((0, 1, 3, 10))))
        pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        return [piece for piece in pieces if piece]

    def _change(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        chance = self.chance
        at = chance.randrange(len(data) + 1)
        span = chance.choice((1, 1, 2, 4, 16, 200))
        kind = chance.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = chance.randrange(256)
        elif kind == 2:
            del data[at : at + span]
        elif kind == 3:
            data[at:at] = chance.randbytes(span)
        elif kind == 4:
            data[at:at] = data[at : at + span] * chance.choice((1, 2, 30))
        elif kind == 5:
            data[at : at + chance.choice((0, span))] = chance.choice(INTERESTING)
        elif kind == 6:
            other = chance.choice(corpus)
            begin = chance.randrange(len(other) + 1)
            data[at:] = other[begin:]
        else:
            del data[at:]
