"""The work of `brewos-relay tail` and `send`."""

import secrets
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import msgspec
import trio

from brewos_relay.client.backoff import Backoff
from brewos_relay.client.codec import decode, is_number
from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.client.websocket import ConnectionEnded, RelayRefused, WebSocket, dial_app
from brewos_relay.commands.failures import EXIT_INTERRUPTED, first_leaf
from brewos_relay.commands.message_lines import format_json, format_line
from brewos_relay.commands.output import discard_output, print_line
from brewos_relay.core.limits import Limits
from brewos_relay.errors import CloseCode, RelayError, SettingsError
from brewos_relay.messages import Message, encode
from brewos_relay.texts import one_line

_ATTEMPTS: Final = 4
"""The number of attempts of `send` to connect."""
GREETING_S: Final = 10.0  # timeout for the relay's greeting
FATE_S: Final = 15.0  # longer than any command waits for its device
ANSWER_S: Final = 0.7  # how long `send` waits for a log message of the device
_FATES: Final = {
    "device_offline": "the device is offline; the command was not delivered",
    "expired": "the device did not connect in time; the command was not delivered",
    "forbidden": "your role does not allow this command: ask an owner of the device",
}
REQUEST_STATE: Final = encode({"type": "request_state"})


TRUST_ADVICE: Final = (
    "for a local CA, get ca.crt from /ca of the relay, compare its fingerprint, and set SSL_CERT_FILE=ca.crt,"
    " or run this in the server's folder"
)


class CommandRefused(RelayError):
    """The relay did not deliver a command."""

    code = "command_refused"


def run_tail(
    *,
    url: str,
    token: str,
    device_id: str,
    as_json: bool,
    ssl_context: ssl.SSLContext | None = None,
) -> int:
    """Print the messages of a device until Ctrl-C; the exit code is 0 then.

    Raises SettingsError for an invalid URL, and another RelayError if the first attempt to connect fails, or
    if a connection ends for good.
    """
    write = _write_json if as_json else _write_line
    return _run(
        lambda: tail(
            url=url, token=token, device_id=device_id, write=write, note=_note, ssl_context=ssl_context
        ),
        interrupted=0,
    )


def run_send(
    *,
    url: str,
    token: str,
    device_id: str,
    command: str,
    fields: Sequence[str],
    ssl_context: ssl.SSLContext | None = None,
) -> int:
    """Send one command, with `fields` as `key=value` texts. Return exit code 0, or 130 after Ctrl-C.

    Raises SettingsError for an invalid URL or field, and another RelayError if the command was not delivered.
    """

    async def main() -> None:
        told = build_command(command, fields, request_id=secrets.token_hex(8))
        await send(
            url=url,
            token=token,
            device_id=device_id,
            command=told,
            say=print_line,
            note=_note,
            ssl_context=ssl_context,
        )

    return _run(main, interrupted=EXIT_INTERRUPTED)


async def tail(
    *,
    url: str,
    token: str,
    device_id: str,
    write: Callable[[Message], None],
    note: Callable[[str], None] = lambda _: None,
    ssl_context: ssl.SSLContext | None = None,
) -> None:
    """Attach to a device, request its state, and pass each message to `write`; reconnect after a loss.

    `note` gets a text for each loss. Raises the exceptions of `dial_app` for the first connection, and
    ConnectionEnded or RelayRefused if a connection ends for good.
    """
    backoff = Backoff()
    attached = False
    while True:
        try:
            async with dial_app(url, token=token, device_id=device_id, ssl_context=ssl_context) as websocket:
                asked = False
                while True:
                    message = await websocket.receive()
                    write(message)
                    attached = True
                    if (hint_s := _reconnect_in_s(message)) is not None:
                        backoff.hint(hint_s)
                    # Not before the greeting: writing to a connection that is being closed may lose the close
                    # reason.
                    if not asked and message.peek_type() == "connected":
                        asked = True
                        backoff.reset()
                        with suppress(
                            ConnectionEnded
                        ):  # messages received before the end are still to be read
                            await websocket.send(REQUEST_STATE)
        except (ConnectionEnded, RelayRefused, RelayUnreachable) as problem:
            if not attached or not _worth_another_try(problem):
                raise
            if isinstance(problem, RelayRefused) and problem.retry_after_s is not None:
                backoff.hint(problem.retry_after_s)
            pause_s = backoff.next_s()
            note(f"{problem}; next attempt in {pause_s:.1f} s")
            await trio.sleep(pause_s)


async def send(
    *,
    url: str,
    token: str,
    device_id: str,
    command: Message,
    say: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    ssl_context: ssl.SSLContext | None = None,
) -> None:
    """Attach to a device, send a command that has a `requestId`, and wait for its outcome.

    Reconnects a few times if a connection ends before the command was sent; a command is never sent twice.
    `say` gets a text for the delivery and for the next log message of the device; `note` one while the
    command waits. Raises CommandRefused, ConnectionEnded, or the exceptions of `dial_app`.
    """
    request_id = msgspec.json.decode(command.payload)["requestId"]
    backoff = Backoff()
    for attempts_left in reversed(range(_ATTEMPTS)):
        async with dial_app(url, token=token, device_id=device_id, ssl_context=ssl_context) as websocket:
            try:
                with trio.move_on_after(GREETING_S) as greeting:
                    await _wait_for(websocket, "connected")
            except ConnectionEnded as problem:
                if not attempts_left or not _worth_another_try(problem):
                    raise
                pause_s = backoff.next_s()
                note(f"{problem}; next attempt in {pause_s:.1f} s")
            else:
                if greeting.cancelled_caught:
                    raise CommandRefused(
                        f"the relay sent no greeting in {GREETING_S:g} s; the command was not sent"
                    )
                await websocket.send(command)
                await _wait_for_outcome(websocket, request_id, say=say, note=note)
                return
        await trio.sleep(pause_s)


async def _wait_for_outcome(
    websocket: WebSocket, request_id: Any, *, say: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Wait for the outcome of a command. Raises CommandRefused."""
    with trio.move_on_after(FATE_S) as waiting:
        await _wait_for_delivery(websocket, request_id, note)
    if waiting.cancelled_caught:
        raise CommandRefused(
            f"the relay did not confirm the command in {FATE_S:g} s; it may have been delivered"
        )
    say("delivered")
    with trio.move_on_after(ANSWER_S), suppress(ConnectionEnded):
        log = await _wait_for(websocket, "log")
        say(f"the device logs: {one_line(str(log.get('message')))}")


def build_command(command: str, fields: Sequence[str], *, request_id: str) -> Message:
    """Build a `command` message. A value that is valid JSON (93.5, true) is sent as JSON, any other as text.

    `request_id` becomes its `requestId`, unless `fields` contains one. Raises SettingsError for a field that
    is not `key=value`, and for a message that is too large for the relay.
    """
    content: dict[str, Any] = {"type": "command", "cmd": command}
    for field in fields:
        key, equals, text = field.partition("=")
        if not key or not equals:
            raise SettingsError(f"{field!r} is not a field of a command; give key=value, as in mode=on")
        if key in content:
            raise SettingsError(f"field {key!r} is given twice, or is reserved")
        try:
            content[key] = msgspec.json.decode(text)
        except (msgspec.MsgspecError, RecursionError):
            content[key] = text
    message = encode({**content, "requestId": content.get("requestId", request_id)})
    if len(message.payload) > (most := Limits().client_message_bytes):
        raise SettingsError(f"the command has {len(message.payload)} bytes; the relay accepts at most {most}")
    return message


async def _wait_for_delivery(websocket: WebSocket, request_id: Any, note: Callable[[str], None]) -> None:
    """Read until the command was delivered. Raises CommandRefused if it was not."""
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
            note("the device is offline; the command waits for it")
        else:
            raise CommandRefused(
                error or _FATES.get(str(status)) or f"the command was not delivered: {status}"
            )


def _worth_another_try(problem: RelayError) -> bool:
    """Tell whether a later attempt can succeed."""
    if isinstance(problem, RelayRefused):
        return problem.status == 429 or problem.status >= 500
    if isinstance(problem, ConnectionEnded) and problem.close_code in set(CloseCode):
        return CloseCode(problem.close_code).may_reconnect
    return True


def _reconnect_in_s(message: Message) -> float | None:
    """Return when to reconnect if this is a `restarting` message, else None."""
    if message.peek_type() != "restarting":
        return None
    pause_ms = (decode(message) or {}).get("reconnectInMs")
    return pause_ms / 1000 if is_number(pause_ms) else None


async def _wait_for(websocket: WebSocket, kind: str) -> dict[str, Any]:
    while True:
        content = decode(await websocket.receive())
        if content is not None and content.get("type") == kind:
            return content


def _write_line(message: Message) -> None:
    if message.peek_type() == "keepalive":
        return  # contains no change
    print_line(format_line(message, datetime.now().astimezone()))


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _write_json(message: Message) -> None:
    print_line(format_json(message))


def _run(main: Callable[[], Awaitable[None]], *, interrupted: int) -> int:
    """Run `main` and return the exit code. Raises RelayError, with advice for the user."""
    exit_code = 0
    failure: RelayError | None = None
    try:
        trio.run(main)
    except* KeyboardInterrupt:
        exit_code = interrupted
    except* BrokenPipeError:
        discard_output()
    except* RelayError as group:
        leaf = first_leaf(group)
        assert isinstance(leaf, RelayError)
        failure = leaf
    if failure is not None:
        raise _with_advice(failure)
    return exit_code


def _with_advice(failure: RelayError) -> RelayError:
    if isinstance(failure, RelayUnreachable):
        if "certificate verify failed" in str(failure):
            return RelayUnreachable(f"{failure}; {TRUST_ADVICE}")
        return RelayUnreachable(
            f"{failure}; start a relay with `brewos-relay serve`, or name another one with --url"
        )
    if isinstance(failure, ConnectionEnded) and failure.close_code == CloseCode.TOKEN_REJECTED:
        reason = failure.reason or "the token is not accepted"
        return ConnectionEnded(failure.close_code, f"{reason}; `brewos-relay token` makes another one")
    return failure
