"""brewos-relay: a WebSocket relay between espresso machines and their apps."""

# The map of the package; arrows point down only.
#
#   cli           the entry point of the command line
#   commands      what `brewos-relay` can do, a module for each command or group
#   doctor        checks of a server, and of a machine's connection
#   server        the process: listener, admission, HTTP side
#   simulator     simulated machines: a model, and the firmware's end of the wire
#   api           HTTP on Quart-Trio, and the pages in console
#   key_rotation  a new key for a device, sent over its own connection
#   shot_files    shots, made from measurements and exported as files
#   protocols     the relay and the registry, as the HTTP API calls them
#   wire          WebSocket: sockets, TLS, handshakes, frames
#   auth          keys, tokens, identities     registry  devices, users, shares, sessions: in SQL
#   client        the SDK: devices and apps in Python
#   telemetry     logs and metrics
#   cluster       many instances that act as one, joined by a broker
#   live_devices  what the API shows of connections
#   outbound      HTTPS requests to other servers, within limits
#   core          the reusable relay: sessions, peers, limits
#   delivery      messages on their way to several peers
#   messages      messages of devices, clients and the relay     errors  exceptions and close codes
#   dialect       what the relay knows of BrewOS messages, and of those of other devices
#   raw_fields    a lenient decoder for messages that msgspec refuses
#   notifications the kinds of notifications about a machine
#   texts         which characters a name may have
#   vocabulary    roles, device ids and keys, wall-clock times: shared by all layers
#   networks      networks around an address, for limits and quotas
#   version       the version of the installed package, and whether it is compiled
#   interpreted   the way around compiled modules
#   compiling     what mypyc reads of classes
#   settings      the one reader of the environment; only commands, doctor and server use it
#
# The names below are the library. They are imported at first use, so that other commands start fast.

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brewos_relay.core.attachment import Attachment, ClientAttachment, DeviceAttachment
    from brewos_relay.core.counters import Counters
    from brewos_relay.core.grant import Grant
    from brewos_relay.core.limits import Limits
    from brewos_relay.core.peer import MemoryEnd, MemoryPeer, Peer, Receive, Tasks, memory_peer
    from brewos_relay.core.relay import Relay, open_relay
    from brewos_relay.delivery import Delivery
    from brewos_relay.dialect import BREWOS, NEUTRAL, CommandClass, Dialect, Rule
    from brewos_relay.errors import CloseCode, PeerGone, RelayClosing, RelayError
    from brewos_relay.messages import Message

from brewos_relay import interpreted

# Not by `settings`: this has to come before every import of a module that may be compiled.
if interpreted.is_off(os.environ.get(interpreted.VARIABLE, "")):
    interpreted.prefer_source()

__all__ = [
    "BREWOS",
    "NEUTRAL",
    "Attachment",
    "ClientAttachment",
    "CloseCode",
    "CommandClass",
    "Counters",
    "Delivery",
    "DeviceAttachment",
    "Dialect",
    "Grant",
    "Limits",
    "MemoryEnd",
    "MemoryPeer",
    "Message",
    "Peer",
    "PeerGone",
    "Receive",
    "Relay",
    "RelayClosing",
    "RelayError",
    "Rule",
    "Tasks",
    "memory_peer",
    "open_relay",
]

_HOME = {
    "core.attachment": ("Attachment", "ClientAttachment", "DeviceAttachment"),
    "core.counters": ("Counters",),
    "core.grant": ("Grant",),
    "core.limits": ("Limits",),
    "core.peer": ("MemoryEnd", "MemoryPeer", "Peer", "Receive", "Tasks", "memory_peer"),
    "core.relay": ("Relay", "open_relay"),
    "delivery": ("Delivery",),
    "dialect": ("BREWOS", "NEUTRAL", "CommandClass", "Dialect", "Rule"),
    "errors": ("CloseCode", "PeerGone", "RelayClosing", "RelayError"),
    "messages": ("Message",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
