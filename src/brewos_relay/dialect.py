"""Dialect: what the relay knows about the messages of one kind of device.

`NEUTRAL` knows only the messages of the relay itself. `BREWOS` is the dialect of BrewOS machines: its tables
are the single source of these rules, and the reference page is generated from them. A command that a dialect
does not list is for owners only and never waits. Names are compared exactly, as the firmware compares them.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, TypeAlias


class CommandClass(enum.StrEnum):
    """The right that a sender needs for a message to reach the device."""

    USE = "use"
    """Making coffee: members and owners."""
    HOUSEHOLD = "household"
    """Settings that take effect after the sender has left: members whose access has no end, and owners."""
    MANAGE = "manage"
    """Networks, services, calibration, updates and resets: owners."""
    RESERVED = "reserved"
    """Messages that a device trusts because the relay sends them: no client may send them."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One `cmd` or one `type`: its class, and whether it may wait for an absent machine."""

    name: str
    command_class: CommandClass
    effect: str
    """What the device does with it, for the reference page."""
    waits: bool = False
    waits_in_modes: frozenset[str] = frozenset()
    """Values of `mode` with which it may wait as well."""


Rules: TypeAlias = tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Volatile:
    """A part of a device's state that is outdated after an absence: a group, or one of its fields."""

    group: str
    field: str | None = None
    value: object = None
    """Only a field with this value is volatile; None means any value."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number in the state of a device that the history keeps."""

    name: str
    path: tuple[str, ...]
    """The keys that lead to it."""
    step: float
    """The history rounds it to a multiple of this, and ignores a value beyond 32,767 steps."""
    unit: str
    flat: str | None = None
    """Its key in a message of the type `flat_state`."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A value in the state of a device that means that the device is at work."""

    path: tuple[str, ...]
    value: str | bool
    flat: str | None = None
    """Its key in a message of the type `flat_state`."""


RELAY_TYPES: Final[Rules] = (
    Rule("key_rotate", CommandClass.RESERVED, "gives the machine another key"),
    Rule("connected", CommandClass.RESERVED, "greets the machine"),
    Rule("error", CommandClass.RESERVED, "the machine logs it as the relay's word"),
)
"""The messages that the relay itself sends to a device."""


class StateKind(enum.IntEnum):
    """How a message of a device changes its last known state."""

    WHOLE = 1
    """It replaces the state."""
    CHANGE = 2
    """Its groups are merged into the state."""
    NUMBER = 3
    """It only carries the next `seq`."""
    KEPT = 4
    """The last message of its type is kept unchanged, beside the state."""
    LOG = 5
    """It is a log line and does not change the state. The last ones may be kept."""
    LOG_CONFIG = 6
    """It says whether log lines are kept, and does not change the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The messages of one kind of device. Without arguments, it is the neutral dialect.

    Under the neutral dialect the relay passes on every message, keeps no state, asks the device for nothing
    and lets no command wait. Only owners may send messages to the device, and no client may send those of the
    relay itself.
    """

    # From clients to the device
    commands: Rules = ()
    """The commands by `cmd`; they come in messages of the type `command`."""
    types: Rules = RELAY_TYPES
    """The other messages, by `type`. Those of `RELAY_TYPES` are reserved in every dialect."""
    modes: frozenset[str] = frozenset()
    """The values of `mode` that the device knows."""
    state_request: str | None = None
    """The type of the request for the whole state, from the relay or a client."""
    full_state_requests: frozenset[str] = frozenset()
    """Types of requests that the relay also answers itself, with the last known state."""

    # From the device
    state: str | None = None
    """The type of a message with the whole state, which is an object of groups."""
    state_change: str | None = None
    """The type of a message with changed groups; it needs `state`."""
    numbered: frozenset[str] = frozenset()
    """Types of messages that carry the next `seq` of the state and no state."""
    kept: tuple[str, ...] = ()
    """Types whose last message is kept for clients that join."""
    info: str | None = None
    """The one of `kept` with the device's description of itself."""
    superseded: frozenset[str] = frozenset()
    """Types that a lagging client may miss, since the next message of the type repeats everything."""
    log: str | None = None
    """The type of log lines. A lagging client gets only those with the `level` "error"."""
    log_config: str | None = None
    """The type of a message with the log settings of the device; it needs `log`."""
    volatile: tuple[Volatile, ...] = ()
    """Parts of the state that change within seconds. Clients are not told them after an absence."""
    measures: tuple[Measure, ...] = ()
    """The numbers in the state that the history keeps; none keep no history."""
    at_work: tuple[Sign, ...] = ()
    """Signs that the device is at work, as a machine that makes a shot. One is enough."""
    flat_state: str | None = None
    """The one of `kept` in which old devices send the state, without groups."""
    says_state_within_s: float = 0.75
    """The longest time after its arrival that a device needs to send its whole state, if it does so at
    once."""

    # Derived from the fields above
    state_kinds: dict[str, StateKind] = field(init=False, repr=False, compare=False)
    """The messages that change the last known state, by type."""
    snapshot_kinds: dict[str, StateKind] = field(init=False, repr=False, compare=False)
    """All messages that a snapshot keeps, by type: those of `state_kinds` and log lines."""
    state_requests: frozenset[str] = field(init=False, repr=False, compare=False)
    """All types of requests for the state."""

    def __post_init__(self) -> None:
        """Derive the lookup tables."""
        kinds = dict.fromkeys(self.kept, StateKind.KEPT) | dict.fromkeys(self.numbered, StateKind.NUMBER)
        if self.state is not None:
            kinds[self.state] = StateKind.WHOLE
            if self.state_change is not None:
                kinds[self.state_change] = StateKind.CHANGE
        object.__setattr__(self, "state_kinds", kinds)
        logs = {self.log: StateKind.LOG, self.log_config: StateKind.LOG_CONFIG}
        logged = {name: kind for name, kind in logs.items() if name is not None and self.log is not None}
        object.__setattr__(self, "snapshot_kinds", {**logged, **kinds})
        asked = {self.state_request} if self.state_request is not None else set()
        object.__setattr__(self, "state_requests", self.full_state_requests | asked)

    def is_superseded(self, message_type: str) -> bool:
        """Whether the next message of this type replaces the one before."""
        return message_type in self.superseded or message_type in self.state_kinds

    def must_reach(self, message_type: str, level: object) -> bool:
        """Whether a message must reach every client, since no later message repeats it.

        This includes kept messages, unless `superseded` lists them: the next one may come much later.
        """
        if message_type == self.log:
            return level == "error"
        kind = self.state_kinds.get(message_type, StateKind.KEPT)
        return kind is StateKind.KEPT and message_type not in self.superseded


# Python 3.11 looks members up slowly.
_MANAGE: Final = CommandClass.MANAGE
_RESERVED: Final = CommandClass.RESERVED

NEUTRAL: Final = Dialect()
"""The dialect of a device that the relay knows nothing about."""


class Policy:
    """A dialect, restricted further by two lists of patterns.

    A pattern names a `cmd`, a `cmd` and its `mode` as `cmd:mode`, or a `type`; `*` stands for any characters.
    A match reserves a command for owners, or keeps it from waiting. No pattern allows more than the dialect.
    """

    __slots__ = (
        "_commands",
        "_never_wait",
        "_owner_commands",
        "_reserved",
        "_types",
        "dialect",
    )

    def __init__(
        self, dialect: Dialect, *, owner_commands: Sequence[str] = (), never_wait: Sequence[str] = ()
    ) -> None:
        self.dialect = dialect
        self._commands = {rule.name: rule for rule in dialect.commands}
        self._types = {rule.name: rule for rule in (*dialect.types, *RELAY_TYPES)}
        self._reserved = {
            _folded(name) for name, rule in self._types.items() if rule.command_class is CommandClass.RESERVED
        }
        self._owner_commands = _split(owner_commands)
        self._never_wait = _split(never_wait)

    def class_of(self, kind: str, cmd: object = None, mode: object = None) -> CommandClass:
        """Return the class of a message by its `type`, `cmd` and `mode`, which may be of any type."""
        if kind != "command":
            rule = self._types.get(kind)
        else:
            rule = self._commands.get(cmd) if isinstance(cmd, str) else None
            if rule is None:
                return _MANAGE
        if rule is None:
            return _RESERVED if _folded(kind) in self._reserved else _MANAGE
        if (
            self._owner_commands
            and rule.command_class is not _RESERVED
            and self._names(self._owner_commands, rule, mode)
        ):
            return _MANAGE
        return rule.command_class

    def may_wait(self, kind: str, cmd: object = None, mode: object = None) -> bool:
        """Whether a message may wait for an absent device."""
        rule = self._find(kind, cmd)
        if rule is None or not (rule.waits or (isinstance(mode, str) and mode in rule.waits_in_modes)):
            return False
        return not (self._never_wait and self._names(self._never_wait, rule, mode))

    def unlisted(self) -> tuple[list[str], list[str]]:
        """List owners' commands, and commands that never wait, without a matching pattern.

        The dialect restricts them in any case. In earlier versions a list without them allowed them.
        """
        owners, never = [], []
        for rule in self.dialect.commands:
            if rule.command_class is CommandClass.MANAGE and not self._names(
                self._owner_commands, rule, None
            ):
                owners.append(rule.name)
            for mode in sorted(self.dialect.modes) if rule.waits_in_modes else (None,):
                waits = rule.waits or mode in rule.waits_in_modes
                if not waits and not self._names(self._never_wait, rule, mode):
                    never.append(rule.name if mode is None else f"{rule.name}:{mode}")
        return owners, never

    def _find(self, kind: str, cmd: object) -> Rule | None:
        if kind != "command":
            return self._types.get(kind)
        return self._commands.get(cmd) if isinstance(cmd, str) else None

    def _names(self, patterns: Sequence[tuple[str, str]], rule: Rule, mode: object) -> bool:
        """Whether a pattern names this message; a `mode` that the device does not know matches any."""
        name = _folded(rule.name)
        known = isinstance(mode, str) and mode in self.dialect.modes
        return any(
            fnmatchcase(name, of_name) and (not of_mode or not known or fnmatchcase(str(mode), of_mode))
            for of_name, of_mode in patterns
        )


def _split(patterns: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Split patterns into name and mode; empty patterns are left out."""
    parts = (_folded(pattern).partition(":") for pattern in patterns if pattern)
    return tuple((name.strip(), mode.strip()) for name, _, mode in parts)


def _folded(text: str) -> str:
    return text.strip().lower()


def _rules(command_class: CommandClass, effects: dict[str, str], *, waits: bool = False) -> Rules:
    return tuple(Rule(name, command_class, effect, waits) for name, effect in effects.items())


_MODES: Final = frozenset({"on", "ready", "brew", "steam", "off", "standby", "idle", "eco"})

# A command may wait if a machine that gets it 10 s late stays off if it was off, moves no water, and stays
# connected. So most settings may wait: they change what a later command does.
BREWOS: Final = Dialect(
    modes=_MODES,
    state_request="request_state",
    full_state_requests=frozenset({"request_full_status"}),
    state="status",
    state_change="status_delta",
    numbered=frozenset({"keepalive"}),
    kept=("device_info", "esp_status", "pico_status", "power_meter_status", "bbw_settings"),
    info="device_info",
    superseded=frozenset({"esp_status", "pico_status", "power_meter_status", "scale_status", "stats"}),
    log="log",
    log_config="log_config",
    volatile=(
        *(Volatile(group) for group in ("shot", "scale", "power", "pressure")),
        Volatile("machine", "isBrewing"),
        # A shot takes half a minute, so it is over. The mode, which stays, says that the machine is on.
        Volatile("machine", "state", "brewing"),
    ),
    measures=(
        Measure("pressure", ("pressure",), 0.01, "bar", "pressure"),
        Measure("flow", ("scale", "flowRate"), 0.01, "g/s"),
        Measure("weight", ("scale", "weight"), 0.1, "g"),
        Measure("brewTemp", ("temps", "brew", "current"), 0.01, "°C", "brewTemp"),
        Measure("steamTemp", ("temps", "steam", "current"), 0.01, "°C", "steamTemp"),
        Measure("groupTemp", ("temps", "group"), 0.01, "°C", "groupTemp"),
        Measure("power", ("power", "current"), 1.0, "W", "power"),
    ),
    at_work=(
        Sign(("machine", "isBrewing"), True, "isBrewing"),
        Sign(("machine", "state"), "brewing", "state"),
        Sign(("shot", "active"), True),
    ),
    flat_state="pico_status",
    commands=(
        Rule(
            "set_mode",
            CommandClass.USE,
            "switches the machine on or off, or to eco",
            waits_in_modes=frozenset({"off", "standby", "idle"}),
        ),
        *_rules(
            CommandClass.USE,
            {
                "enter_eco": "the same as `set_mode` with `eco`",
                "exit_eco": "heats up from eco",
                "brew_start": "starts a shot; the firmware ignores it",
                "brew_stop": "ends a shot; the firmware ignores it",
            },
        ),
        *_rules(
            CommandClass.USE,
            {
                "set_temp": "sets the target of a boiler",
                "set_bbw": "sets brewing by weight",
                "set_preinfusion": "sets the preinfusion",
                "tare": "tares the scale",
                "scale_tare": "tares the scale",
                "scale_reset": "resets the scale's reading",
                "scale_scan": "looks for scales",
                "scale_scan_stop": "stops looking for scales",
                "scale_connect": "connects a scale",
                "scale_disconnect": "disconnects the scale",
                "set_scale_connected": "from the app's developer page; the firmware ignores it",
                "record_maintenance": "notes a cleaning; the firmware ignores it",
                "get_schedules": "reports the schedules",
                "get_time_status": "reports the clock",
                "get_log_config": "reports which log lines are kept",
            },
            waits=True,
        ),
        *_rules(
            CommandClass.HOUSEHOLD,
            {
                "add_schedule": "adds a schedule",
                "update_schedule": "changes a schedule",
                "delete_schedule": "deletes a schedule",
                "toggle_schedule": "enables or disables a schedule",
                "set_auto_off": "sets when the machine switches itself off",
                "set_eco": "sets eco: when it begins, and its temperature",
                "set_preferences": "sets units, currency, the price of electricity and the like",
                "sync_time": "asks the time server for the time",
            },
            waits=True,
        ),
        *_rules(
            CommandClass.MANAGE,
            {
                "set_machine_info": "sets name, brand, model and type of the machine",
                "set_device_info": "the same",
                "set_log_config": "sets which log lines are kept",
                "clear_logs": "deletes the kept log lines",
            },
            waits=True,
        ),
        *_rules(
            CommandClass.MANAGE,
            {
                "set_power": "sets voltage and greatest current",
                "set_power_config": "the same",
                "set_time_config": "sets time zone and time server",
                "mqtt_test": "connects to an MQTT broker",
                "mqtt_config": "sets the MQTT broker, which can send commands from then on",
                "configure_power_meter": "sets where the power meter's values come from",
                "test_power_meter": "tries a power meter",
                "start_power_meter_discovery": "does nothing",
                "run_diagnostics": "runs all diagnostics",
                "run_diagnostic_test": "runs one of them",
                "check_update": "asks GitHub for updates; blocks the machine's connection meanwhile",
                "check_version_mismatch": "compares the versions of its two processors",
                "ota_start": "installs an update",
                "esp32_ota_start": "installs an update",
                "pico_ota_start": "installs an update",
                "set_cloud_config": "points the machine to another server, with its key",
                "wifi_config": "sets its address in the network",
                "wifi_forget": "forgets the network",
                "restart": "restarts the machine",
                "factory_reset": "forgets everything",
            },
        ),
    ),
    types=(
        *_rules(
            CommandClass.USE,
            {
                "request_state": "[merged by the relay](#requests-to-the-relay); viewers may ask too",
                "request_full_status": "the same",
                "ping": "answered by the relay; viewers may ask too",
                "get_metrics": "the same",
                "refresh_auth": "the same",
            },
        ),
        *_rules(
            CommandClass.USE,
            {
                "getConfig": "asks the machine's second processor for its settings",
                "backflush": "what the app sends as `record_maintenance`; the firmware ignores it",
                "group_clean": "the same",
                "groupClean": "the same",
                "descale": "the same",
            },
            waits=True,
        ),
        *_rules(CommandClass.MANAGE, {"setLogLevel": "sets which log lines are written"}, waits=True),
        *RELAY_TYPES,
    ),
)
"""Firmware 0.8.62, and the apps for it."""
