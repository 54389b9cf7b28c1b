"""Checks of the bus, and of the instances that it joins."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from brewos_relay.cluster.broker import BrokerError
from brewos_relay.cluster.survey import survey
from brewos_relay.doctor import Finding, State
from brewos_relay.errors import RegistryError, RelayError, SettingsError
from brewos_relay.instances import ClusterProblem, ProblemKind, Survey
from brewos_relay.registry.database import Database
from brewos_relay.registry.identity import fingerprint_of
from brewos_relay.server.cluster import describe_settings, open_broker
from brewos_relay.server.private_redis import find_program
from brewos_relay.settings import Settings

if TYPE_CHECKING:
    from brewos_relay.cluster.redis_observer import ServerFacts

_HERE: Final = "these settings"
_STATES: Final[dict[ProblemKind, State]] = {"versions": "warning"}
_SLOW_MS: Final = 10.0


@dataclass(frozen=True, slots=True)
class BusState:
    """A bus and its instances. `ages_s` are the ages of their leases."""

    address: str
    facts: "ServerFacts"
    survey: Survey
    ages_s: dict[str, float]


def read_bus(url: str) -> BusState:
    """Observe the bus at a URL. Raises SettingsError, or BrokerError if it cannot be reached."""
    broker = open_broker(url)  # raises if the driver of Redis, which the import below needs, is missing
    from brewos_relay.cluster.redis_observer import lease_ages_s, observe, read_facts
    from brewos_relay.cluster.redis_url import parse_redis_url

    address = parse_redis_url(url)

    async def read() -> BusState:
        async with observe(broker) as (connection, requests):
            found = await survey(connection, requests)
            ages_s = await lease_ages_s(connection, address.prefix)
        return BusState(str(address), await read_facts(broker), found, ages_s)

    return trio.run(read)


def _check_private_bus() -> list[Finding]:
    """Check what several workers without a bus need: a program for a private one, and its driver."""
    try:
        program = find_program()
        open_broker("redis://localhost")  # which is not connected
    except (RelayError, SettingsError) as problem:
        reason, _, advice = str(problem).partition("; " if isinstance(problem, SettingsError) else ": ")
        return [Finding("bus", "failed", reason, advice)]
    return [Finding("bus", "ok", f"the workers start one of their own: {program}")]


def check_bus(settings: Settings) -> list[Finding]:
    """Check the bus, and whether its instances and these settings fit together.

    Without a bus, check whether several workers could have one of their own.
    """
    if not settings.bus:
        return _check_private_bus() if settings.workers > 1 else []
    try:
        state = read_bus(settings.bus)
    except SettingsError as problem:
        return [Finding("bus", "failed", str(problem), "correct BREWOS_RELAY_BUS")]
    except BrokerError as problem:
        advice = "start Redis or Valkey, and check BREWOS_RELAY_BUS; instances work alone meanwhile"
        return [Finding("bus", "failed", str(problem), advice)]
    return [*_check_server(state), *_check_instances(settings, state)]


def _check_server(state: BusState) -> list[Finding]:
    facts, bus_ms = state.facts, state.survey.bus_ms or 0.0
    text = f"{state.address} answers in {bus_ms:.1f} ms, {facts.version or 'version unknown'}"
    if facts.is_too_old:
        return [Finding("bus", "failed", text, "install Redis 6.2 or newer, or Valkey")]
    if bus_ms > _SLOW_MS:
        advice = "each message between instances takes as long: run Redis near the instances"
        found = [Finding("bus", "warning", text, advice)]
    else:
        found = [Finding("bus", "ok", text)]
    if facts.evicts is not None:
        what = f"maxmemory-policy is {facts.evicts}: a full Redis forgets instances and their devices"
        found.append(Finding("bus memory", "warning", what, "CONFIG SET maxmemory-policy noeviction"))
    elif not facts.memory_is_readable:
        advice = "allow INFO, or make sure that maxmemory-policy is noeviction"
        found.append(Finding("bus memory", "warning", "this user may not read it", advice))
    if facts.pubsub_limits is None:
        advice = "allow CONFIG GET, or make sure that its part for pubsub is at least 32mb 8mb 60"
        what = "this user may not read client-output-buffer-limit"
        found.append(Finding("bus buffers", "warning", what, advice))
    elif facts.has_small_buffers:
        what = "client-output-buffer-limit for pubsub is {} {} bytes: Redis disconnects instances in a burst"
        advice = 'CONFIG SET client-output-buffer-limit "pubsub 32mb 8mb 60"'
        found.append(Finding("bus buffers", "warning", what.format(*facts.pubsub_limits), advice))
    return found


def _check_instances(settings: Settings, state: BusState) -> list[Finding]:
    survey = state.survey
    if not survey.instances:
        return [Finding("instances", "ok", "none runs on this bus")]
    here = describe_settings(settings, _own_registry(settings))
    problems: list[ClusterProblem] = survey.problems({_HERE: here})
    if problems:
        return [
            Finding("instances", _STATES.get(each.kind, "failed"), each.text, each.advice)
            for each in problems
        ]
    count = len(survey.instances)
    text = f"{count} on this bus, with the version, token keys and registry of these settings"
    return [Finding("instances", "ok", text)]


def _own_registry(settings: Settings) -> str:
    """Return the fingerprint of the registry; empty if it cannot be read, which another check reports."""
    try:
        with Database.open(settings.resolved_database_url()) as database, database.reading() as db:
            return fingerprint_of(db)
    except (RegistryError, SettingsError, OSError):
        return ""
