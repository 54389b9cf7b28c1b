"""`brewos-relay cluster …`: the instances on a bus."""

from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from brewos_relay.commands.failures import EXIT_FAILED, Failed, errors_as
from brewos_relay.commands.output import print_json, print_table
from brewos_relay.commands.parameters import HelpfulGroup, settings_from
from brewos_relay.vocabulary import now_ms

if TYPE_CHECKING:
    from brewos_relay.doctor.cluster_checks import BusState
    from brewos_relay.instances import ClusterProblem, SurveyedInstance

_HEAD: Final = (
    *("INSTANCE", "STATE", "VERSION", "HOST", "UPTIME", "DEVICES", "CLIENTS"),
    *("FROM DEVICES", "TO CLIENTS", "COMMANDS", "LEASE", "ANSWER"),
)


@click.group("cluster", cls=HelpfulGroup)
def cluster() -> None:
    """Look at the instances that a bus joins.

    \b
    Example:
      BREWOS_RELAY_BUS=redis://redis.example.com brewos-relay cluster status
    """


@cluster.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> NoReturn:
    """List the instances with their figures and problems.

    The bus is that of BREWOS_RELAY_BUS. Rates are messages per second over some seconds: from devices, to
    clients, and commands. LEASE is how long ago an instance renewed its lease, at most every 4 s; ANSWER is
    how long it took to answer. Exits with 1 if there is a problem. Changes nothing.

    \b
    Example:
      BREWOS_RELAY_BUS=redis://redis.example.com brewos-relay cluster status
      brewos-relay cluster status --json | jq '.instances[].devices'
    """
    with errors_as(Failed):
        settings = settings_from()
        if not settings.bus:
            raise click.UsageError(
                "BREWOS_RELAY_BUS is not set: set it to the URL of the Redis that joins the instances,"
                " such as redis://redis.example.com"
            )
        from brewos_relay.cluster.broker import BrokerError
        from brewos_relay.doctor.cluster_checks import read_bus

        try:
            state = read_bus(settings.bus)
        except BrokerError as problem:
            raise Failed(f"the bus is unavailable: {problem}") from None
    problems = state.survey.problems()
    if as_json:
        print_json(_content(state, problems))
    else:
        _print(state, problems)
    ctx.exit(EXIT_FAILED if problems else 0)


def _content(state: "BusState", problems: "list[ClusterProblem]") -> dict[str, Any]:
    survey = state.survey
    return {
        "bus": {
            "address": state.address,
            "server": state.facts.version,
            "answerMs": round(survey.bus_ms or 0.0, 3),
        },
        "instances": [_instance_content(state, each) for each in survey.instances],
        "devices": sum(each.description.devices for each in survey.instances),
        "clients": sum(each.description.clients for each in survey.instances),
        "problems": [{"kind": each.kind, "text": each.text, "advice": each.advice} for each in problems],
    }


def _instance_content(state: "BusState", each: "SurveyedInstance") -> dict[str, Any]:
    described, rates = each.description, each.description.rates
    age_s = state.ages_s.get(each.name)
    return {
        "name": each.name,
        "state": each.state,
        "version": described.version,
        "host": described.host,
        "uptimeS": _uptime_s(each),
        "devices": described.devices,
        "clients": described.clients,
        "perSecond": {
            "fromDevices": rates.from_devices,
            "fromClients": rates.from_clients,
            "toClients": rates.to_clients,
            "commands": rates.commands,
        },
        "leaseAgeS": round(age_s, 3) if age_s is not None else None,
        "answerMs": round(each.answer_ms, 3) if each.answer_ms is not None else None,
    }


def _uptime_s(each: "SurveyedInstance") -> int | None:
    started_ms = each.description.started_ms
    return max(0, (now_ms() - started_ms) // 1000) if started_ms else None


def _print(state: "BusState", problems: "list[ClusterProblem]") -> None:
    survey = state.survey
    click.echo(f"{state.address}, {state.facts.version or 'version unknown'}, {survey.bus_ms or 0:.1f} ms")
    if survey.instances:
        click.echo()
        print_table(_HEAD, [_row(state, each) for each in survey.instances])
    else:
        click.echo("No instance runs on this bus.")
    if problems:
        click.echo()
    for problem in problems:
        click.echo(f"problem: {problem.text}")
        click.echo(f"  → {problem.advice}")


def _row(state: "BusState", each: "SurveyedInstance") -> tuple[str, ...]:
    from brewos_relay.doctor.device_timeline import format_duration

    described, rates = each.description, each.description.rates
    uptime_s, age_s = _uptime_s(each), state.ages_s.get(each.name)
    return (
        each.name,
        each.state,
        described.version or "-",
        described.host or "-",
        format_duration(uptime_s * 1000) if uptime_s is not None else "-",
        str(described.devices),
        str(described.clients),
        *(f"{rate:.1f}/s" for rate in (rates.from_devices, rates.to_clients, rates.commands)),
        f"{age_s:.1f} s" if age_s is not None else "-",
        f"{each.answer_ms:.1f} ms" if each.answer_ms is not None else "-",
    )
