"""The other two ends: devices and apps that talk to a relay."""

# The map; arrows point down only.
#
#   device, app           what a program uses: a machine's end, an app's end
#   linked                what these have in common
#   link, backoff         one connection that comes back by itself, and says how it stands
#   inbox                 what waits for a program that is busy
#   pairing, tokens       what goes to a relay by HTTP: registrations, sessions (http_call)
#   key_store             secrets in files
#   deltas                what is worth sending of a state
#   device_state          what an app knows of a machine; outcomes: what became of its commands
#   dialing               what a device and an app ask for
#   connection            one WebSocket; the only module that imports trio_websocket
#   endpoint, codec, relay_clock    what all of them need
#
# The names below are the library. They are fetched when first used.

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brewos_relay.client.app import App, NothingKnown, open_app
    from brewos_relay.client.connection import ConnectionEnded, RelayRefused
    from brewos_relay.client.deltas import FULL_ONLY, THRESHOLDS, Deltas
    from brewos_relay.client.device import Command, Device, open_device
    from brewos_relay.client.device_state import DeviceState
    from brewos_relay.client.endpoint import RelayUnreachable
    from brewos_relay.client.key_store import KeyStore, KeyStoreError
    from brewos_relay.client.link import LinkState, LinkStatus, LinkStopped
    from brewos_relay.client.outcomes import Outcome
    from brewos_relay.client.pairing import Pairing
    from brewos_relay.client.tokens import SessionTokens, SignInEnded
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
    "SessionTokens",
    "SignInEnded",
    "generate_device_id",
    "generate_key",
    "open_app",
    "open_device",
]

_HOME = {
    "app": ("App", "NothingKnown", "open_app"),
    "connection": ("ConnectionEnded", "RelayRefused"),
    "deltas": ("FULL_ONLY", "THRESHOLDS", "Deltas"),
    "device": ("Command", "Device", "open_device"),
    "device_state": ("DeviceState",),
    "endpoint": ("RelayUnreachable",),
    "key_store": ("KeyStore", "KeyStoreError"),
    "link": ("LinkState", "LinkStatus", "LinkStopped"),
    "outcomes": ("Outcome",),
    "pairing": ("Pairing",),
    "tokens": ("SessionTokens", "SignInEnded"),
    ".vocabulary": ("generate_device_id", "generate_key"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
