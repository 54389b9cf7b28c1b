"""Instances: what each instance of a cluster tells about itself, their problems, and what they share."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from brewos_relay.texts import one_line

ProblemKind: TypeAlias = Literal["bus", "versions", "keys", "registries", "hosts", "silent"]
InstanceState: TypeAlias = Literal["running", "draining", "silent"]
DIFFERENCES: Final[Sequence[ProblemKind]] = ("versions", "keys", "registries", "hosts")
"""The problems that follow from descriptions alone."""
_SHOWN: Final = 5
"""How many instances a text names."""


class Rates(msgspec.Struct, frozen=True, rename="camel"):
    """Messages per second, over the last seconds."""

    from_devices: float = 0.0
    from_clients: float = 0.0
    to_clients: float = 0.0
    commands: float = 0.0


class Description(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What an instance tells about itself with each renewal of its lease.

    Older versions leave fields out. `keys` and `registry` are fingerprints. `boot` is the same for all
    processes of one running kernel, `parent` for all workers of one server; it is empty for a single process.
    """

    version: str = ""
    host: str = ""
    boot: str = ""
    parent: str = ""
    started_ms: int = 0
    sqlite: bool = False
    keys: str = ""
    registry: str = ""
    devices: int = 0
    clients: int = 0
    undeliverable: int = 0
    closing: bool = False
    rates: Rates = Rates()


class SurveyedInstance(msgspec.Struct, frozen=True):
    """An instance: its description, and how long it took to answer; None if it did not answer in time."""

    name: str
    description: Description
    answer_ms: float | None

    @property
    def state(self) -> InstanceState:
        """Whether it serves, closes its peers to end, or does not answer."""
        if self.answer_ms is None:
            return "silent"
        return "draining" if self.description.closing else "running"


class Survey(msgspec.Struct, frozen=True):
    """The instances of a cluster, sorted by name.

    `bus_ms` is the round trip to the bus; None if it is unavailable.
    """

    bus_ms: float | None
    instances: Sequence[SurveyedInstance]

    def problems(self, others: Mapping[str, Description] | None = None) -> "list[ClusterProblem]":
        """List the problems of the cluster, compared with `others` as well."""
        descriptions = {each.name: each.description for each in self.instances} | dict(others or {})
        silent = [each.name for each in self.instances if each.answer_ms is None]
        problems = find_problems(descriptions, silent=silent)
        return problems if self.bus_ms is not None else [_NO_BUS, *problems]


class ClusterProblem(msgspec.Struct, frozen=True):
    """A problem of a cluster, with advice."""

    kind: ProblemKind
    text: str
    advice: str


_NO_BUS: Final = ClusterProblem(
    "bus",
    "the bus is unavailable: machines and apps on different instances are not connected",
    "check that Redis runs and that this instance can reach it; the log says why it cannot",
)
_SAME: Final[Mapping[Literal["version", "keys", "registry"], tuple[ProblemKind, str, str]]] = {
    "version": (
        "versions",
        "instances have different versions",
        "normal during an upgrade; afterwards, upgrade the remaining instances",
    ),
    "keys": (
        "keys",
        "instances have different keys for tokens: users that one has signed in are refused by others",
        "give all instances the same JWT_SECRET and BREWOS_RELAY_JWT_KEY_FILES, and restart them",
    ),
    "registry": (
        "registries",
        "instances use different registries: a machine or user of one is unknown to others",
        (
            "set BREWOS_RELAY_DATABASE_URL to the same database for all instances, or give them different"
            " prefixes on the bus"
        ),
    ),
}


def read_description(content: bytes) -> Description:
    """Read the description of an instance. One that cannot be read, as of another program, is empty."""
    try:
        read = msgspec.json.decode(content, type=Description)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Description()
    return msgspec.structs.replace(
        read, **{name: one_line(getattr(read, name)) for name in ("version", "host", "boot")}
    )


def find_problems(
    descriptions: Mapping[str, Description], *, silent: Collection[str] = ()
) -> list[ClusterProblem]:
    """List the problems of instances on one bus. `silent` are those that do not answer."""
    found = []
    for field, (kind, text, advice) in _SAME.items():
        groups = defaultdict(list)
        for name, description in descriptions.items():
            if value := getattr(description, field):
                groups[value].append(name)
        if len(groups) > 1:
            shown = [
                f"{value} on {_names(names)}" if field == "version" else _names(names)
                for value, names in sorted(groups.items())
            ]
            found.append(ClusterProblem(kind, f"{text} ({' / '.join(shown[:_SHOWN])})", advice))
    on_files = [name for name, each in descriptions.items() if each.sqlite]
    if on_files and len({each.boot for each in descriptions.values()}) > 1:
        found.append(
            ClusterProblem(
                "hosts",
                f"instances on several hosts share the bus, but the registry of {_names(on_files)} is an"
                " SQLite file",
                "set BREWOS_RELAY_DATABASE_URL to the same PostgreSQL database for all instances;"
                " `brewos-relay db export` and `db import` move a registry there",
            )
        )
    if silent:
        found.append(
            ClusterProblem(
                "silent",
                f"no answer from {_names(silent)}",
                "a process that ended without notice leaves the list within 15 s; if it stays, look at its"
                " log and its connection to the bus",
            )
        )
    return found


def _names(names: Collection[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


class Bucket(NamedTuple):
    """A token bucket that instances share."""

    name: str
    per_s: float
    burst: float


class BucketsTaken(NamedTuple):
    """The buckets that a token was taken from; or none, because one was empty."""

    buckets: Sequence[Bucket]
    empty: Bucket | None = None
