"""What `brewos-relay tail` and `brewos-relay send` do."""

import secrets
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import msgspec
import trio

from brewos_relay.client.backoff import Backoff
from brewos_relay.client.codec import decode
from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.client.websocket import ConnectionEnded, RelayRefused, WebSocket, dial_app
from brewos_relay.commands.message_lines import format_json, format_line
from brewos_relay.commands.output import drop_output, write_out
from brewos_relay.core.limits import Limits
from brewos_relay.errors import CloseCode, RelayError, SettingsError
from brewos_relay.messages import Message, encode
from brewos_relay.texts import one_line

_ATTEMPTS: Final = 4
"""How often `send` connects at most before its command is sent."""
GREETING_S: Final = 10.0  # the longest that the relay may take to greet
FATE_S: Final = 15.0  # longer than any command waits for its machine
ANSWER_S: Final = 0.7  # how long a machine may take to say something of a command
FINE, INTERRUPTED = 0, 130  # exit codes
_FATES: Final = {
    "device_offline": "the machine is offline; the command was not delivered",
    "expired": "the machine did not come back in time; the command was not delivered",
    "forbidden": "you may not do this with the machine: ask one of its owners",
}
REQUEST_STATE: Final = encode({"type": "request_state"})


class CommandRefused(RelayError):
    """The relay answered a command with an error."""

    code = "command_refused"


def run_tail(*, url: str, token: str, device_id: str, as_json: bool) -> int:
    """Print what a device says until Ctrl-C; the exit code is 0 then.

    Raises SettingsError for a URL that is none, and another RelayError if there was no connection to begin
    with, or if it ended for good.
    """
    write = _write_json if as_json else _write_line
    return _run(
        lambda: tail(url=url, token=token, device_id=device_id, write=write, note=_note), interrupted=FINE
    )


def run_send(*, url: str, token: str, device_id: str, command: str, fields: Sequence[str]) -> int:
    """Send one command, with `fields` as `key=value` texts; the exit code is 0, or 130 after Ctrl-C.

    Raises SettingsError for a URL or a field that is none, and another RelayError if the command was not
    delivered to the device.
    """

    async def main() -> None:
        told = build_command(command, fields, request_id=secrets.token_hex(8))
        await send(url=url, token=token, device_id=device_id, command=told, say=write_out, note=_note)

    return _run(main, interrupted=INTERRUPTED)


async def tail(
    *,
    url: str,
    token: str,
    device_id: str,
    write: Callable[[Message], None],
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """Attach to a device, ask for its state as apps do, and hand on every message; come back after a loss.

    `note` is told of losses. Raises what `dial_app` raises for the first connection, and what ended one for
    good: ConnectionEnded, or RelayRefused.
    """
    backoff = Backoff()
    attached = False
    while True:
        try:
            async with dial_app(url, token=token, device_id=device_id) as websocket:
                asked = False
                while True:
                    message = await websocket.receive()
                    write(message)
                    attached = True
                    if (hint_s := _reconnect_in_s(message)) is not None:
                        backoff.hint(hint_s)
                    # Not before the greeting: to write to a connection that is being closed may cost the
                    # reason why.
                    if not asked and message.peek_type() == "connected":
                        asked = True
                        backoff.reset()
                        with suppress(ConnectionEnded):  # what came before its end is still to be read
                            await websocket.send(REQUEST_STATE)
        except (ConnectionEnded, RelayRefused, RelayUnreachable) as problem:
            if not attached or not _worth_another_try(problem):
                raise
            if isinstance(problem, RelayRefused) and problem.retry_after_s is not None:
                backoff.hint(problem.retry_after_s)
            pause_s = backoff.next_s()
            note(f"{problem}; again in {pause_s:.1f} s")
            await trio.sleep(pause_s)


async def send(
    *,
    url: str,
    token: str,
    device_id: str,
    command: Message,
    say: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """Attach to a device, send it a command that has a `requestId`, and wait until it is known what became
    of it.

    A connection that ends before the command was sent is made again, a few times. No command is sent twice.
    `say` is told that it was delivered, and what the machine logs right after that; `note`, that it waits.
    Raises CommandRefused, ConnectionEnded, or what `dial_app` raises.
    """
    request_id = msgspec.json.decode(command.payload)["requestId"]
    backoff = Backoff()
    for attempts_left in reversed(range(_ATTEMPTS)):
        async with dial_app(url, token=token, device_id=device_id) as websocket:
            try:
                with trio.move_on_after(GREETING_S) as greeting:
                    await _wait_for(websocket, "connected")
            except ConnectionEnded as problem:
                if not attempts_left or not _worth_another_try(problem):
                    raise
                pause_s = backoff.next_s()
                note(f"{problem}; again in {pause_s:.1f} s")
            else:
                if greeting.cancelled_caught:
                    raise CommandRefused(
                        f"the relay said nothing in {GREETING_S:g} s; the command was not sent"
                    )
                await websocket.send(command)
                await _wait_for_outcome(websocket, request_id, say=say, note=note)
                return
        await trio.sleep(pause_s)


async def _wait_for_outcome(
    websocket: WebSocket, request_id: Any, *, say: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Wait until it is known what became of a command; raises CommandRefused."""
    with trio.move_on_after(FATE_S) as waiting:
        await _wait_for_delivery(websocket, request_id, note)
    if waiting.cancelled_caught:
        raise CommandRefused(
            f"the relay did not say in {FATE_S:g} s what became of the command; it may have been delivered"
        )
    say("delivered")
    with trio.move_on_after(ANSWER_S), suppress(ConnectionEnded):
        log = await _wait_for(websocket, "log")
        say(f"the machine says: {one_line(str(log.get('message')))}")


def build_command(command: str, fields: Sequence[str], *, request_id: str) -> Message:
    """Build a `command` message; a value that is JSON is taken as such (93.5, true), any other as text.

    `request_id` is its `requestId`, unless `fields` have one.

    Raises SettingsError for a field that is not `key=value`, and for more than the relay takes.
    """
    content: dict[str, Any] = {"type": "command", "cmd": command}
    for field in fields:
        key, equals, text = field.partition("=")
        if not key or not equals:
            raise SettingsError(f"{field!r} is not a field of a command; give key=value, as in mode=on")
        if key in content:
            raise SettingsError(f"field {key!r} is given twice, or is not yours to give")
        try:
            content[key] = msgspec.json.decode(text)
        except (msgspec.MsgspecError, RecursionError):
            content[key] = text
    message = encode({**content, "requestId": content.get("requestId", request_id)})
    if len(message.payload) > (most := Limits().client_message_bytes):
        raise SettingsError(f"the command has {len(message.payload)} bytes; a relay takes {most} at most")
    return message


async def _wait_for_delivery(websocket: WebSocket, request_id: Any, note: Callable[[str], None]) -> None:
    """Read until a command was delivered; raises CommandRefused if it was not."""
    error = ""
    while True:
        content = decode(await websocket.receive()) or {}
        if content.get("type") == "error":
            error = one_line(str(content.get("message") or content.get("error")))
        if content.get("type") != "command_status" or content.get("requestId") != request_id:
            continue
        status = content.get("status")
        if status == "delivered":
            return
        if status == "queued":
            note("the machine is offline; the command waits for it")
        else:
            raise CommandRefused(
                error or _FATES.get(str(status)) or f"the command was not delivered: {status}"
            )


def _worth_another_try(problem: RelayError) -> bool:
    """Whether the same attempt can come to something else later."""
    if isinstance(problem, RelayRefused):
        return problem.status == 429 or problem.status >= 500
    if isinstance(problem, ConnectionEnded) and problem.close_code in set(CloseCode):
        return CloseCode(problem.close_code).come_back
    return True


def _reconnect_in_s(message: Message) -> float | None:
    """Read when to come back, from a relay that says that it leaves."""
    if message.peek_type() != "restarting":
        return None
    pause_ms = (decode(message) or {}).get("reconnectInMs")
    return pause_ms / 1000 if isinstance(pause_ms, int | float) else None


async def _wait_for(websocket: WebSocket, kind: str) -> dict[str, Any]:
    while True:
        content = decode(await websocket.receive())
        if content is not None and content.get("type") == kind:
            return content


def _write_line(message: Message) -> None:
    if message.peek_type() == "keepalive":
        return  # no change of anything
    write_out(format_line(message, datetime.now().astimezone()))


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _write_json(message: Message) -> None:
    write_out(format_json(message))


def _run(main: Callable[[], Awaitable[None]], *, interrupted: int) -> int:
    """Run `main`; how it ended is the exit code, or a RelayError that says what to do."""
    exit_code = FINE
    failure: RelayError | None = None
    try:
        trio.run(main)
    except* KeyboardInterrupt:
        exit_code = interrupted
    except* BrokenPipeError:
        drop_output()
    except* RelayError as group:
        failure = _first_leaf(group)
    if failure is not None:
        raise _with_advice(failure)
    return exit_code


def _first_leaf(group: BaseExceptionGroup[RelayError]) -> RelayError:
    first = group.exceptions[0]
    return _first_leaf(first) if isinstance(first, BaseExceptionGroup) else first


def _with_advice(failure: RelayError) -> RelayError:
    if isinstance(failure, RelayUnreachable):
        return RelayUnreachable(
            f"{failure}; start a relay with `brewos-relay serve`, or name another one with --url"
        )
    if isinstance(failure, ConnectionEnded) and failure.close_code == CloseCode.TOKEN_REJECTED:
        reason = failure.reason or "the token is not accepted"
        return ConnectionEnded(failure.close_code, f"{reason}; `brewos-relay token` makes another one")
    return failure
