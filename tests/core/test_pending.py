from brewos_relay.core.pending import PendingCommand, PendingCommands
from brewos_relay.messages import CommandHead, Message

NOW_MS = 1_000


def command(name: str, *, expires_at: float = 10.0, expires_at_ms: float = 20_000) -> PendingCommand[str]:
    return PendingCommand(
        message=Message(name.encode()),
        head=CommandHead(type=name),
        sender="app",
        queued_at_ms=0,
        expires_at=expires_at,
        expires_at_ms=expires_at_ms,
    )


def names(commands: list[PendingCommand[str]]) -> list[str]:
    return [one.head.type for one in commands]


def test_commands_are_taken_in_the_order_in_which_they_came() -> None:
    waiting = PendingCommands[str](50)
    for name in "abc":
        assert waiting.add(command(name))
    assert len(waiting) == 3
    assert names(list(waiting)) == ["a", "b", "c"]
    assert names(waiting.take_all()) == ["a", "b", "c"]
    assert len(waiting) == 0
    assert waiting.take_all() == []


def test_no_more_wait_than_may() -> None:
    waiting = PendingCommands[str](2)
    assert [waiting.add(command(name)) for name in "abc"] == [True, True, False]
    assert names(waiting.take_all()) == ["a", "b"], "those that were promised to wait stay"
    assert waiting.add(command("d"))


def test_what_has_expired_is_taken_out_and_the_rest_stays_in_order() -> None:
    waiting = PendingCommands[str](50)
    for name, expires_at in (("a", 3.0), ("b", 10.0), ("c", 2.0), ("d", 5.0)):
        waiting.add(command(name, expires_at=expires_at))
    assert waiting.take_expired(1.9, NOW_MS) == []
    assert names(waiting.take_expired(3.0, NOW_MS)) == ["a", "c"], "also if what came later expires earlier"
    assert waiting.take_expired(3.0, NOW_MS) == []
    assert names(waiting.take_all()) == ["b", "d"]


def test_a_command_also_expires_by_the_wall_clock_which_counts_while_the_process_does_not_run() -> None:
    waiting = PendingCommands[str](50)
    for name, expires_at_ms in (("a", 1_000), ("b", 1_001)):
        waiting.add(command(name, expires_at_ms=expires_at_ms))
    assert names(waiting.take_expired(0.0, NOW_MS)) == ["a"]
    assert names(waiting.take_all()) == ["b"]
