"""The reference of the Python packages, made from their public names and docstrings by autodoc."""

import inspect
from enum import Enum
from importlib import import_module
from typing import Any, Final

#: What is for users of the library, where a class has more than that for the modules around it.
_MEMBERS: Final = {
    "Attachment": "close, wait_closed",
    "ClientAttachment": "set_grant, set_token_end",
    "DeviceAttachment": None,
    "Relay": "attach_device, attach_client, drain, is_online, state_of, admits, is_contested, device_count,"
    " client_count, set_grant, end_clients, end_device, send_to_device, tell_clients",
}

#: What users of the library are given, and never make: what it is made of is not for them.
_GIVEN: Final = frozenset(
    {
        *("App", "Attachment", "ClientAttachment", "Command", "Device", "DeviceAttachment", "LinkStatus"),
        *("MemoryEnd", "MemoryPeer", "Relay"),
    }
)


def reference_of(package: str) -> str:
    """Make a section for each public name of a package, in the order of its list of names."""
    module = import_module(package)
    return "\n\n".join(_entry(package, name, getattr(module, name)) for name in module.__all__)


def is_protocol(value: type) -> bool:
    """Whether a class only says what others have to be able to do."""
    return bool(getattr(value, "_is_protocol", False))


def _entry(package: str, name: str, value: Any) -> str:
    members = _MEMBERS.get(name, "")
    options = [] if members is None else [f":members: {members}".rstrip()]
    signature = ""
    if inspect.isclass(value):
        directive = "autoexception" if issubclass(value, BaseException) else "autoclass"
        if issubclass(value, Enum):
            options.append(":undoc-members:")
            signature = "()"
        elif is_protocol(value) or name in _GIVEN:
            signature = "()"
    elif inspect.isfunction(value):
        directive, options = "autofunction", []
    else:
        directive, options = "autodata", [":no-value:"]
    if name in ("App", "Device"):
        options.append(":inherited-members:")  # what both have in common is not public by itself
    lines = [f".. {directive}:: {package}.{name}{signature}", *(f"   {option}" for option in options)]
    return "\n".join([f"### {name}", "", "```{eval-rst}", *lines, "```"])
