"""`brewos-relay device activity` and `doctor`: what users did with a device, and when it was connected."""

from pathlib import Path
from typing import Final

import click

from brewos_relay.commands.failures import Failed, errors_as
from brewos_relay.commands.output import print_json
from brewos_relay.commands.parameters import data_dir_option, device_argument, json_option
from brewos_relay.commands.registry_access import existing_registry
from brewos_relay.errors import DeviceUnknown
from brewos_relay.texts import is_showable
from brewos_relay.vocabulary import Detail, iso_time, now_ms

_ENTRIES: Final = 5000


@click.command("doctor")
@device_argument
@click.option(
    "--limit",
    type=click.IntRange(1, 5000),
    metavar="COUNT",
    default=20,
    help="Number of events to show, the newest ones (default: 20).",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@data_dir_option
def device_doctor(device_id: str, limit: int, as_json: bool, data_dir: Path | None) -> None:
    """Show when and why a device connected and disconnected.

    The relay pings a device once when it connects; round-trip times are those of these pings. Recent events
    take up to 5 s to appear.

    \b
    Example:
      brewos-relay device doctor BRW-12AB34CD
    """
    from brewos_relay.doctor.device_timeline import end_reason, format_duration, summarize, timeline_of
    from brewos_relay.registry.activity import activity_of
    from brewos_relay.registry.devices import find_devices

    with errors_as(Failed), existing_registry(data_dir) as database, database.reading() as db:
        device = next(iter(find_devices(db, [device_id])), None)
        if device is None:
            raise DeviceUnknown(device_id)
        events = timeline_of(activity_of(db, device_id, limit=_ENTRIES))
    summary = summarize(events)
    if as_json:
        print_json(
            {
                "id": device.id,
                "name": device.name,
                "firmwareVersion": device.firmware_version,
                "lastSeen": iso_time(device.last_seen_ms),
                "connections": summary.connections,
                "reasons": dict(summary.reasons),
                "longestAwayMs": max(summary.away_ms, default=None),
                "medianRoundTripMs": summary.median_round_trip_ms,
                "timeline": [
                    {
                        "at": iso_time(event.at_ms),
                        "kind": event.kind,
                        "online": event.online,
                        "sinceMs": event.since_ms,
                        "detail": dict(event.detail),
                    }
                    for event in events[-limit:]
                ],
            }
        )
        return
    firmware = f", firmware {device.firmware_version}" if device.firmware_version else ""
    click.echo(f"{device.id}{f' ({device.name})' if device.name else ''}{firmware}")
    if not events:
        click.echo("It has not been connected in the last 90 days.")
        return
    state = "connected" if events[-1].online else "disconnected"
    changes_ms = [event.at_ms for event in events if event.kind in {"online", "offline"}] or [events[0].at_ms]
    click.echo(
        f"It has been {state} for {format_duration(now_ms() - changes_ms[-1])}, according to the last entry."
    )
    click.echo(f"{summary.connections} connections since {iso_time(events[0].at_ms)}.")
    if summary.away_ms:
        longest, typical = max(summary.away_ms), sorted(summary.away_ms)[len(summary.away_ms) // 2]
        click.echo(
            f"Disconnected in between: {format_duration(typical)} (median),"
            f" {format_duration(longest)} (longest)."
        )
    if summary.median_round_trip_ms is not None:
        worst = max(summary.round_trips_ms)
        click.echo(f"Round trips: {summary.median_round_trip_ms:.0f} ms (median), {worst:.0f} ms (longest).")
    if summary.reasons:
        click.echo("\nReasons for disconnecting:")
        for reason, count in summary.reasons.items():
            click.echo(f"{count:>6}  {reason}")
    click.echo("")
    for event in events[-limit:]:
        since = "" if event.since_ms is None else format_duration(event.since_ms)
        if event.kind == "throttled":
            click.echo(
                f"{iso_time(event.at_ms)}  throttled: it sends more than its rate, and stays connected"
            )
        elif event.kind == "throttle_ended":
            click.echo(f"{iso_time(event.at_ms)}  no longer throttled{_throttle_summary(event.detail)}")
        elif event.online:
            click.echo(f"{iso_time(event.at_ms)}  connected" + (f", after {since} offline" if since else ""))
        else:
            trip = event.detail.get("roundTripMs")
            notes = [f"round trip {trip} ms"] if trip is not None else []
            if "messages" in event.detail:
                notes.append(f"{event.detail['messages']} messages")
            more = f" ({', '.join(notes)})" if notes else ""
            there = f", after {since} online" if since else ""
            click.echo(f"{iso_time(event.at_ms)}  disconnected{there}: {end_reason(event)}{more}")


def _throttle_summary(detail: Detail) -> str:
    """Say how long a device was throttled, and what became of its messages."""
    if not {"throttledS", "merged", "dropped"} <= detail.keys():
        return ""
    return (
        f", after {detail['throttledS']} s: {detail['merged']} messages merged, {detail['dropped']} dropped"
    )


@click.command()
@device_argument
@click.option(
    "--limit",
    type=click.IntRange(1, 5000),
    metavar="COUNT",
    default=100,
    help="Maximum number of entries, newest first (default: 100).",
)
@json_option
@data_dir_option
def activity(device_id: str, limit: int, as_json: bool, data_dir: Path | None) -> None:
    """Show who did what with a device, and when.

    Entries are kept for 90 days, at most 5,000 for each device. Recent events take up to 5 s to appear.

    \b
    Example:
      brewos-relay device activity BRW-12AB34CD --limit 20
    """
    from brewos_relay.registry.accounts import all_users
    from brewos_relay.registry.activity import activity_of
    from brewos_relay.registry.devices import find_devices

    with errors_as(Failed), existing_registry(data_dir) as database, database.reading() as db:
        if not find_devices(db, [device_id]):
            raise DeviceUnknown(device_id)
        found = activity_of(db, device_id, limit=limit)
        emails = {user.id: user.email for user in all_users(db)}
    if not found:
        click.echo(f"There is no activity of {device_id} yet.", err=True)
    if as_json:
        print_json(
            [
                {
                    "id": each.id,
                    "at": iso_time(each.at_ms),
                    "kind": each.kind,
                    "userId": each.user_id,
                    "email": emails.get(each.user_id or ""),
                    "detail": dict(each.detail),
                }
                for each in found
            ]
        )
        return
    for each in found:
        who = "-" if each.user_id is None else emails.get(each.user_id, each.user_id)
        detail = "  ".join(f"{key}={_quote(str(value))}" for key, value in each.detail.items())
        click.echo(f"{iso_time(each.at_ms)}  {each.kind:<13}  {who}  {detail}".rstrip())


def _quote(text: str) -> str:
    """Return a text from outside as one word: unchanged if it is printable, else quoted and escaped."""
    return text if is_showable(text) and len(text.split()) == 1 else repr(text)
