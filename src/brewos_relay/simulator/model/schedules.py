"""Schedules: the minutes of the week at which a machine switches itself on or off, and their commands."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from brewos_relay.simulator.model import command_fields as fields
from brewos_relay.simulator.model.boilers import PARALLEL
from brewos_relay.simulator.model.command_fields import CommandRejected, CommandResult

if TYPE_CHECKING:
    from brewos_relay.simulator.model.machine import Machine

_Command = Mapping[str, Any]

MOST_SCHEDULES: Final = 10
NAME_CHARS: Final = 23
EVERY_DAY: Final = 0b1111111


@dataclass(slots=True, kw_only=True)
class Schedule:
    """One schedule; `days` has a bit for each day of the week, bit 0 is Sunday."""

    id: int
    enabled: bool = True
    days: int = EVERY_DAY
    hour: int = 7
    minute: int = 0
    action: Literal["on", "off"] = "on"
    strategy: int = PARALLEL
    name: str = ""

    def due_at(self, minute: int) -> bool:
        """Tell whether the schedule is due in this minute, counted since 1970 in local time."""
        moment = datetime.fromtimestamp(minute * 60, UTC)
        return (
            self.enabled
            and (self.hour, self.minute) == (moment.hour, moment.minute)
            and bool(self.days >> moment.isoweekday() % 7 & 1)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the schedule as `device_info` contains it."""
        return asdict(self)


def add_schedule(machine: "Machine", command: _Command) -> CommandResult:
    """Add a schedule with a new id."""
    schedules = machine.configuration.schedules
    if len(schedules) >= MOST_SCHEDULES:
        raise CommandRejected(f"there are {MOST_SCHEDULES} schedules already; delete one")
    taken = {schedule.id for schedule in schedules}
    new = _set(Schedule(id=next(free for free in range(1, MOST_SCHEDULES + 2) if free not in taken)), command)
    schedules.append(new)
    return CommandResult("info", f"Schedule {new.id} added: {new.hour:02}:{new.minute:02} {new.action}", True)


def update_schedule(machine: "Machine", command: _Command) -> CommandResult:
    """Change a schedule; omitted fields keep their values."""
    old = _find(machine, command)
    new = _set(Schedule(**old.as_dict()), command)
    schedules = machine.configuration.schedules
    schedules[schedules.index(old)] = new
    return CommandResult("info", f"Schedule {new.id} changed", settings_changed=True)


def delete_schedule(machine: "Machine", command: _Command) -> CommandResult:
    """Delete a schedule."""
    old = _find(machine, command)
    machine.configuration.schedules.remove(old)
    return CommandResult("info", f"Schedule {old.id} deleted", settings_changed=True)


def toggle_schedule(machine: "Machine", command: _Command) -> CommandResult:
    """Enable or disable a schedule."""
    schedule = _find(machine, command)
    schedule.enabled = fields.flag(command, "enabled", default=True)
    return CommandResult("info", f"Schedule {schedule.id} {'on' if schedule.enabled else 'off'}", True)


def get_schedules(machine: "Machine", _: _Command) -> CommandResult:
    """Report the schedules."""
    count = len(machine.configuration.schedules)
    return CommandResult("info", f"{count} schedules", settings_changed=True)


def set_auto_off(machine: "Machine", command: _Command) -> CommandResult:
    """Set whether and when an unused machine switches itself off."""
    enabled = fields.flag(command, "enabled", default=True)
    minutes = fields.whole(command, "minutes", low=1, high=1440, default=60)
    machine.configuration.auto_off, machine.configuration.auto_off_min = enabled, minutes
    return CommandResult(
        "info", f"Auto-off {'on' if enabled else 'off'}: {minutes} min", settings_changed=True
    )


def _find(machine: "Machine", command: _Command) -> Schedule:
    wanted = fields.whole(command, "id", low=0, high=255)
    for schedule in machine.configuration.schedules:
        if schedule.id == wanted:
            return schedule
    raise CommandRejected(f"there is no schedule {wanted}")


def _set(schedule: Schedule, command: _Command) -> Schedule:
    """Set the fields of a schedule from a command. Raises CommandRejected."""
    schedule.enabled = fields.flag(command, "enabled", default=schedule.enabled)
    schedule.days = fields.whole(command, "days", low=0, high=EVERY_DAY, default=schedule.days)
    schedule.hour = fields.whole(command, "hour", low=0, high=23, default=schedule.hour)
    schedule.minute = fields.whole(command, "minute", low=0, high=59, default=schedule.minute)
    action: Literal["on", "off"] = "on"
    if fields.choice(command, "action", ("on", "off"), schedule.action) == "off":
        action = "off"
    schedule.action = action
    schedule.strategy = fields.whole(command, "strategy", low=0, high=3, default=schedule.strategy)
    schedule.name = fields.text(command, "name", longest=NAME_CHARS, default=schedule.name)
    return schedule
