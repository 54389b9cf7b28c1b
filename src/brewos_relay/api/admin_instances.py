"""GET /api/admin/instances: the instances of this server, for its administrators."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.authentication import Authenticator
from brewos_relay.api.openapi import described, make_blueprint
from brewos_relay.api.payloads import json_answer
from brewos_relay.instances import (
    ClusterProblem,
    InstanceState,
    ProblemKind,
    Rates,
    Survey,
    SurveyedInstance,
)
from brewos_relay.vocabulary import iso_time

SurveyInstances: TypeAlias = Callable[[], Awaitable[Survey | None]]
"""Asks all instances; None for a single instance without a bus."""

_WORST_FIRST: Final[Sequence[InstanceState]] = ("silent", "draining", "running")


class BusStatus(msgspec.Struct, rename="camel"):
    """The bus: whether this instance can use it, and how long it takes to answer, in milliseconds."""

    available: bool
    answer_ms: float | None


class InstanceRates(msgspec.Struct, rename="camel"):
    """Messages per second, over the last seconds."""

    from_devices: float
    from_clients: float
    to_clients: float
    commands: float


class Instance(msgspec.Struct, rename="camel", kw_only=True):
    """An instance; the workers of one server are one instance with several processes.

    `answerMs` is how long it took to answer, in milliseconds; null if it did not. Figures of other instances
    are some seconds old. `undeliverable` counts since the start.
    """

    name: str
    state: InstanceState
    processes: int
    version: str
    host: str
    started_at: str | None
    devices: int
    clients: int
    undeliverable: int
    per_second: InstanceRates
    answer_ms: float | None


class InstanceProblem(msgspec.Struct):
    """A problem of the instances together, and what to do about it."""

    kind: ProblemKind
    text: str
    advice: str


class Instances(msgspec.Struct):
    """The instances of this server. A single instance without a bus has no list: `bus` is null."""

    bus: BusStatus | None
    instances: list[Instance]
    problems: list[InstanceProblem]


@dataclass(frozen=True, kw_only=True, eq=False)
class AdminInstanceRoutes:
    """The route of the instances, for administrators."""

    survey: SurveyInstances
    authenticator: Authenticator

    def blueprint(self) -> Blueprint:
        """Make the blueprint of this route."""
        return make_blueprint("admin_instances", {"GET /api/admin/instances": self.all_instances})

    @described(
        "List the instances of this server and their problems, as an administrator",
        answer=Instances,
        refusals=[403],
    )
    async def all_instances(self) -> Response:
        await self.authenticator.administrator(request)
        survey = await self.survey()
        if survey is None:
            return json_answer(Instances(None, [], []))
        bus_ms = survey.bus_ms
        return json_answer(
            Instances(
                bus=BusStatus(bus_ms is not None, None if bus_ms is None else round(bus_ms, 3)),
                instances=[_answer(group) for group in _by_server(survey.instances)],
                problems=[_problem_answer(problem) for problem in survey.problems()],
            )
        )


def _by_server(instances: Iterable[SurveyedInstance]) -> Iterable[Sequence[SurveyedInstance]]:
    """Put the workers of one server together."""
    groups: dict[str, list[SurveyedInstance]] = {}
    for each in instances:
        groups.setdefault(each.description.parent or each.name, []).append(each)
    return groups.values()


def _answer(group: Sequence[SurveyedInstance]) -> Instance:
    described = [each.description for each in group]
    states = {each.state for each in group}
    times = [each.answer_ms for each in group if each.answer_ms is not None]
    started_ms = min(each.started_ms for each in described)

    def rate(name: str) -> float:
        each: list[float] = [getattr(one.rates, name) for one in described]
        return round(sum(each), 1)

    return Instance(
        name=group[0].name,
        state=next(state for state in _WORST_FIRST if state in states),
        processes=len(group),
        version=described[0].version,
        host=described[0].host,
        started_at=iso_time(started_ms) if started_ms else None,
        devices=sum(each.devices for each in described),
        clients=sum(each.clients for each in described),
        undeliverable=sum(each.undeliverable for each in described),
        per_second=InstanceRates(*(rate(name) for name in Rates.__struct_fields__)),
        answer_ms=round(max(times), 3) if times else None,
    )


def _problem_answer(problem: ClusterProblem) -> InstanceProblem:
    return InstanceProblem(problem.kind, problem.text, problem.advice)


async def no_instances() -> None:
    """Tell that this is a single instance without a bus."""
