"""The SDK: devices and apps in Python."""

# The map; arrows point down only.
#
#   app_peer, device_peer    App and Device, which programs use
#   linked_peer              what App and Device share: their link, received messages, the relay's clock
#   reconnecting_link        one connection at a time, opened again after each loss; its status
#   device_state, deltas     the state of a device: as an app receives it, as a device sends it
#   history                  the measurements of a device in the last minutes
#   command_outcomes         the outcomes of an app's commands
#   pairing, token_sources   registration of a device, tokens of an app, both by HTTP (http_call)
#   key_store                device keys and sessions in private files
#   websocket                one WebSocket; the only module that imports trio_websocket
#   backoff, codec, endpoint pauses between attempts; message contents; the relay's URL
#
# The names below are the library. They are fetched when first used.

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brewos_relay.client.app_peer import App, NothingKnown, open_app
    from brewos_relay.client.command_outcomes import Outcome
    from brewos_relay.client.deltas import FULL_ONLY, THRESHOLDS, Deltas
    from brewos_relay.client.device_peer import Command, Device, open_device
    from brewos_relay.client.device_state import DeviceState
    from brewos_relay.client.endpoint import RelayUnreachable
    from brewos_relay.client.history import History
    from brewos_relay.client.key_store import KeyStore, KeyStoreError
    from brewos_relay.client.pairing import Pairing
    from brewos_relay.client.reconnecting_link import LinkState, LinkStatus, LinkStopped
    from brewos_relay.client.token_sources import SessionFile, SignInEnded
    from brewos_relay.client.websocket import ConnectionEnded, RelayRefused
    from brewos_relay.vocabulary import generate_device_id, generate_key

__all__ = [
    "FULL_ONLY",
    "THRESHOLDS",
    "App",
    "Command",
    "ConnectionEnded",
    "Deltas",
    "Device",
    "DeviceState",
    "History",
    "KeyStore",
    "KeyStoreError",
    "LinkState",
    "LinkStatus",
    "LinkStopped",
    "NothingKnown",
    "Outcome",
    "Pairing",
    "RelayRefused",
    "RelayUnreachable",
    "SessionFile",
    "SignInEnded",
    "generate_device_id",
    "generate_key",
    "open_app",
    "open_device",
]

_HOME = {
    "app_peer": ("App", "NothingKnown", "open_app"),
    "websocket": ("ConnectionEnded", "RelayRefused"),
    "deltas": ("FULL_ONLY", "THRESHOLDS", "Deltas"),
    "device_peer": ("Command", "Device", "open_device"),
    "device_state": ("DeviceState",),
    "endpoint": ("RelayUnreachable",),
    "history": ("History",),
    "key_store": ("KeyStore", "KeyStoreError"),
    "reconnecting_link": ("LinkState", "LinkStatus", "LinkStopped"),
    "command_outcomes": ("Outcome",),
    "pairing": ("Pairing",),
    "token_sources": ("SessionFile", "SignInEnded"),
    ".vocabulary": ("generate_device_id", "generate_key"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
