import pytest

from fuzz.mutation import MOST_BYTES, Mutator

CORPUS = (b"GET / HTTP/1.1\r\n", b"x" * 300, b"")


def test_a_seed_makes_the_same_inputs_again() -> None:
    first, again, other = ([Mutator(seed).mutated(CORPUS) for _ in range(3)] for seed in (5, 5, 6))
    assert first == again
    assert [Mutator(5).mutated(CORPUS) for _ in range(1)] != other


def test_inputs_are_many_and_bounded() -> None:
    inputs = {Mutator(seed).mutated(CORPUS) for seed in range(500)}
    assert len(inputs) > 300
    assert inputs & set(CORPUS)  # some are as they should be
    assert max(map(len, inputs)) <= MOST_BYTES


@pytest.mark.parametrize("data", [b"", b"a", bytes(range(200))])
def test_split_pieces_join_to_the_whole(data: bytes) -> None:
    cut = [Mutator(seed).split(data) for seed in range(50)]
    assert all(b"".join(pieces) == data for pieces in cut)
    assert all(all(pieces) for pieces in cut)
    if len(data) > 1:
        assert {len(pieces) for pieces in cut} > {1}
