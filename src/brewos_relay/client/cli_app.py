"""What `brewos-relay tail` and `brewos-relay send` do."""

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import msgspec
import trio

from brewos_relay.client.app import decode, open_app
from brewos_relay.client.connection import ConnectionEnded, RelayUnreachable, WebSocket
from brewos_relay.client.lines import describe
from brewos_relay.core.limits import Limits
from brewos_relay.errors import CloseCode, RelayError, SettingsError
from brewos_relay.messages import Message, encode

GREETING_S: Final = 10.0  # the longest that the relay may take to greet
ANSWER_S: Final = 0.7  # how long an error may take to come back for a command
FINE, INTERRUPTED = 0, 130  # exit codes
REQUEST_STATE: Final = encode({"type": "request_state"})


class CommandRefused(RelayError):
    """The relay answered a command with an error."""

    code = "command_refused"


def run_tail(*, url: str, token: str, device_id: str, as_json: bool) -> int:
    """Print what a device says until Ctrl-C; the exit code is 0 then.

    Raises SettingsError for a URL that is none, and another RelayError once the connection has ended, or if
    there is none.
    """
    write = _write_json if as_json else _write_line
    return _run(lambda: tail(url=url, token=token, device_id=device_id, write=write), interrupted=FINE)


def run_send(*, url: str, token: str, device_id: str, command: str, fields: Sequence[str]) -> int:
    """Send one command, with `fields` as `key=value` texts; the exit code is 0, or 130 after Ctrl-C.

    Raises SettingsError for a URL or a field that is none, and another RelayError if the command was not
    sent, or an error came back for it.
    """

    async def main() -> None:
        await send(url=url, token=token, device_id=device_id, command=build_command(command, fields))
        write_out("sent")

    return _run(main, interrupted=INTERRUPTED)


async def tail(*, url: str, token: str, device_id: str, write: Callable[[Message], None]) -> None:
    """Attach to a device, ask for its state as apps do, and hand on every message.

    Raises ConnectionEnded, or what `open_app` raises.
    """
    async with open_app(url, token=token, device_id=device_id) as websocket:
        asked = False
        while True:
            message = await websocket.receive()
            write(message)
            # Not before the greeting: to write to a connection that is being closed may cost the reason why.
            if not asked and message.peek_type() == "connected":
                asked = True
                with suppress(ConnectionEnded):  # what came before its end is still to be read
                    await websocket.send(REQUEST_STATE)


async def send(*, url: str, token: str, device_id: str, command: Message) -> None:
    """Attach to a device, send it a command and wait a moment for an error.

    Raises CommandRefused, ConnectionEnded, or what `open_app` raises.
    """
    async with open_app(url, token=token, device_id=device_id) as websocket:
        with trio.move_on_after(GREETING_S) as greeting:
            await _wait_for(websocket, "connected")
        if greeting.cancelled_caught:
            raise CommandRefused(f"the relay said nothing in {GREETING_S:g} s; the command was not sent")
        await websocket.send(command)
        with trio.move_on_after(ANSWER_S):
            error = await _wait_for(websocket, "error")
            raise CommandRefused(str(error.get("message") or error.get("error")))


def build_command(command: str, fields: Sequence[str]) -> Message:
    """Build a `command` message; a value that is JSON is taken as such (93.5, true), any other as text.

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
    message = encode(content)
    if len(message.payload) > (most := Limits().client_message_bytes):
        raise SettingsError(f"the command has {len(message.payload)} bytes; a relay takes {most} at most")
    return message


def format_line(message: Message, at: datetime) -> str:
    """Write a message as a line for people."""
    content = decode(message)
    return f"{at:%H:%M:%S}  {describe(content) if content is not None else repr(message)}"


def format_json(message: Message) -> str:
    """Write a message as one JSON object on one line."""
    content = decode(message)
    if content is None:
        content = {"undecodable": True, "bytes": len(message.payload)}
    # `str` for what MessagePack can say and JSON cannot, such as a map with keys of several kinds.
    return msgspec.json.encode(content, enc_hook=str).decode()


def write_out(line: str) -> None:
    """Print a line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def drop_output() -> None:
    """Stop printing, even what Python would flush on its way out: whoever read the output has enough."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


async def _wait_for(websocket: WebSocket, kind: str) -> dict[str, Any]:
    while True:
        content = decode(await websocket.receive())
        if content is not None and content.get("type") == kind:
            return content


def _write_line(message: Message) -> None:
    write_out(format_line(message, datetime.now().astimezone()))


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
