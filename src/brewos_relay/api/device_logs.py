"""/api/logs: the log of a machine, as the BrewOS app reads and configures it.

The app's requests become the firmware's own commands, and the lines come from the ring that the relay keeps.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
import trio
from quart import Blueprint, Request, Response, current_app, request
from werkzeug.exceptions import HTTPException
from werkzeug.sansio.multipart import Data, Epilogue, Field, MultipartDecoder, NeedData

from brewos_relay.api.authentication import Authenticator
from brewos_relay.api.device_access import require_access
from brewos_relay.api.openapi import Done, described, make_blueprint
from brewos_relay.api.payloads import Refused, body_of, json_answer, query_of
from brewos_relay.core.device_log import MOST_BYTES
from brewos_relay.live_devices import LogView
from brewos_relay.messages import encode
from brewos_relay.protocols import Registry, RelayView
from brewos_relay.vocabulary import Role

FRESH_S: Final = 5.0
"""How long the log settings of a device are used before the device is asked again."""
WAIT_S: Final = 1.5
"""How long a request waits for the device. The app's service worker gives up after 3 s."""
_LOOK_EVERY_S: Final = 0.1
_FORM: Final = "multipart/form-data"
_PARTS_AT_MOST: Final = 20
_OFFLINE: Final = "The machine is offline. Switch it on, and try again once it is connected."


class OfDevice(msgspec.Struct):
    """Names the device."""

    device: Annotated[str, msgspec.Meta(max_length=12)]


class LogInfo(msgspec.Struct, rename="camel"):
    """The log settings of a machine, and the size of the log that the relay has of it, in bytes."""

    enabled: bool
    size: int
    max_size: int
    pico_forwarding: bool
    debug_logs: bool


class LogSwitch(msgspec.Struct):
    """Whether to switch something on."""

    enabled: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class LogRoutes:
    """The routes of logs. Every user of a machine may read its log; owners configure and clear it."""

    relay: RelayView
    store: Registry
    authenticator: Authenticator

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "device_logs",
            {
                "GET /api/logs/info": self.log_info,
                "GET /api/logs": self.read_log,
                "DELETE /api/logs": self.clear_log,
                "POST /api/logs/enable": self.enable_log,
                "POST /api/logs/pico": self.enable_pico_log,
                "POST /api/logs/debug": self.enable_debug_log,
            },
        )

    @described(
        "Read the log settings of a device, and how much of its log the relay has",
        answer=LogInfo,
        query=OfDevice,
        refusals=[404],
    )
    async def log_info(self) -> Response:
        device_id = await self._device_of(request)
        view = await self._ask_config(device_id)
        if view is None:
            raise Refused(_OFFLINE, status=503, headers={"Retry-After": "10"})
        return json_answer(
            LogInfo(
                enabled=view.config.enabled,
                size=view.size_bytes,
                max_size=MOST_BYTES,
                pico_forwarding=view.config.pico,
                debug_logs=view.config.debug,
            )
        )

    @described(
        "Read the last log lines of a device as text. The relay keeps them while logging is switched on",
        answer=str,
        answer_media="text/plain",
        query=OfDevice,
        refusals=[404],
    )
    async def read_log(self) -> Response:
        view = await self.relay.log_of(await self._device_of(request), "read")
        text = "".join(f"{line}\n" for line in (view.lines if view is not None else []))
        return current_app.response_class(
            text.encode("utf-8", "replace"), content_type="text/plain; charset=utf-8"
        )

    @described("Clear the log of a device", answer=Done, query=OfDevice, refusals=[404])
    async def clear_log(self) -> Response:
        device_id = await self._device_of(request, at_least="owner")
        await self.relay.log_of(device_id, "clear")
        await self._command(device_id, "clear_logs")
        return json_answer(Done())

    @described(
        "Switch the log of a device on or off",
        body=LogSwitch,
        body_media=_FORM,
        answer=Done,
        query=OfDevice,
        refusals=[404],
    )
    async def enable_log(self) -> Response:
        return await self._switch("enabled")

    @described(
        "Switch the log lines of the machine's second processor on or off",
        body=LogSwitch,
        body_media=_FORM,
        answer=Done,
        query=OfDevice,
        refusals=[404],
    )
    async def enable_pico_log(self) -> Response:
        return await self._switch("picoEnabled")

    @described(
        "Switch debug log lines on or off",
        body=LogSwitch,
        body_media=_FORM,
        answer=Done,
        query=OfDevice,
        refusals=[404],
    )
    async def enable_debug_log(self) -> Response:
        return await self._switch("debugEnabled")

    async def _device_of(self, asked: Request, *, at_least: Role = "viewer") -> str:
        """Return the device of a request, once the requester has the role for it."""
        requester = await self.authenticator(asked)
        device_id = query_of(asked, OfDevice).device
        access = await require_access(requester, device_id, store=self.store, at_least=at_least)
        return access.device_id

    async def _switch(self, name: str) -> Response:
        device_id = await self._device_of(request, at_least="owner")
        enabled = await _switch_of(request)
        await self._command(device_id, "set_log_config", **{name: enabled})
        # Not every firmware reports settings that were changed.
        await self._command(device_id, "get_log_config")
        return json_answer(Done())

    async def _command(self, device_id: str, cmd: str, **fields: Any) -> None:
        """Send a command to a device. Raises Refused (503) unless it was sent."""
        outcome = await self.relay.send_to_device(
            device_id, encode({"type": "command", "cmd": cmd, **fields})
        )
        if outcome not in ("delivered", "unknown"):
            text = _OFFLINE if outcome == "device_offline" else "The machine is busy. Try again soon."
            raise Refused(text, status=503, headers={"Retry-After": "5"})

    async def _ask_config(self, device_id: str) -> LogView | None:
        """Return the log of a device, with settings that it has sent just now if it is online.

        A device is asked at most every `FRESH_S`, also if several users read its settings.
        """
        view = await self.relay.log_of(device_id, "look")
        if view is not None and view.age_s < FRESH_S:
            return view
        asked_at = trio.current_time()
        outcome = await self.relay.send_to_device(
            device_id, encode({"type": "command", "cmd": "get_log_config"})
        )
        if outcome not in ("delivered", "unknown"):
            return view
        while trio.current_time() < asked_at + WAIT_S:
            await trio.sleep(_LOOK_EVERY_S)
            latest = await self.relay.log_of(device_id, "look")
            if latest is not None and latest.age_s <= trio.current_time() - asked_at:
                return latest
        return view


async def _switch_of(asked: Request) -> bool:
    """Read `enabled` from a form, as the app sends it, or from JSON. Raises Refused (400)."""
    if asked.mimetype != _FORM:
        return (await body_of(asked, LogSwitch)).enabled
    content = await asked.get_data(as_text=False)
    assert isinstance(content, bytes)
    boundary = asked.mimetype_params.get("boundary", "").encode("utf-8", "replace")
    given = _fields_of(content, boundary).get("enabled")
    if given not in (b"true", b"false"):
        raise Refused("The form must have the field 'enabled' with 'true' or 'false'.", status=400)
    return given == b"true"


def _fields_of(body: bytes, boundary: bytes) -> dict[str, bytes]:
    """Return the fields of a form (RFC 7578), without its files; none if it is malformed.

    Quart's own parser fails on text that is not UTF-8.
    """
    fields: dict[str, bytes] = {}
    decoder = MultipartDecoder(boundary, max_parts=_PARTS_AT_MOST)
    name = None
    try:
        decoder.receive_data(body)
        decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), Epilogue | NeedData):
            if isinstance(event, Field):
                name = event.name
                fields[name] = b""
            elif isinstance(event, Data) and name is not None:
                fields[name] += event.data
            else:
                name = None
    except (ValueError, HTTPException):
        return {}
    return fields
