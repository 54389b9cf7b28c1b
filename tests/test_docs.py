"""The documentation agrees with the code: tables are compared and links are followed."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from brewos_relay import messages
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.cli import cli
from brewos_relay.commands import failures
from brewos_relay.dialect import BREWOS, CommandClass
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message
from brewos_relay.settings import Settings, variable_names
from brewos_relay.settings.server_limits import ServerLimits
from from_http import application
from message_catalogue import RECEIVED, SENT
from support.pages import DOCS, FENCE, LINK, PAGES, README, ROOT, code, read, rows, section, tables
from support.process import SOURCES
from tables import COMMAND, outdated

# Settings


def default_of(value: object) -> str:
    """Format a default as in the documentation."""
    if value is None:
        return "not set"
    return f"`{written(value)}`" if value not in ("", ()) else "empty"


def written(value: object) -> str:
    """Format a value as in an environment variable."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def unit_of(name: str) -> str:
    return next(
        (unit for end, unit in {"_s": "seconds", "_bytes": "bytes"}.items() if name.endswith(end)), ""
    )


def all_settings() -> dict[str, object]:
    """Return every setting with its default, in the order of the fields."""
    named = {each.name: getattr(Settings(), each.name) for each in fields(Settings) if each.name != "limits"}
    return named | {each.name: getattr(ServerLimits(), each.name) for each in fields(ServerLimits)}


def test_settings_page_has_every_setting_with_its_default() -> None:
    options = {param.name: param.opts[0] for param in cli.commands["serve"].params}
    expected = {
        ", ".join(f"`{variable}`" for variable in variable_names(name)): (
            f"`{options[name]}`" if name in options else "",
            default_of(value),
            unit_of(name),
        )
        for name, value in all_settings().items()
    }
    documented = [row for table in tables(read("reference/settings.md")) for row in table]
    assert {
        row["Variable"]: (row.get("Option", ""), row["Default"], row.get("Unit", "")) for row in documented
    } == expected
    assert len(documented) == len(expected)
    assert all(row["Meaning"] for row in documented)


def test_dotenv_example_has_every_setting_with_its_default() -> None:
    found = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", read(ROOT / ".env.example"), re.M))
    assert set(found) == {variable_names(name)[0] for name in all_settings()}
    for name, value in all_settings().items():
        shown = found[variable_names(name)[0]]
        assert shown == (
            "" if value is None else f"{value:g}" if isinstance(value, float) else written(value)
        )


def test_limits_that_pages_repeat_are_those_of_the_code() -> None:
    assert (
        ServerLimits(
            request_head_bytes=8 * 1024,
            device_message_bytes=16 * 1024,
            client_message_bytes=4 * 1024,
            lag_bytes=64 * 1024,
            outbox_bytes=256 * 1024,
            http_body_bytes=64 * 1024,
            client_rate=20,
            client_burst=60,
            device_rate=50,
            device_burst=200,
            admit_rate=500,
            clients_per_device=1000,
            clients_per_user=200,
            request_head_s=10,
            admission_s=4,
            message_s=30,
            stall_s=10,
            close_s=1,
            http_request_s=60,
            http_idle_s=30,
            device_min_age_s=8,
            device_first_frame_s=10.5,
            device_silence_s=45,
            drain_s=20,
            keepalive_s=7,
            client_ping_s=15,
            client_silence_s=35,
            token_warning_s=300,
            snapshot_s=60,
            state_request_s=2,
            pending_commands=50,
            pending_s=10,
            never_wait=(),
            owner_commands=(),
        )
        == ServerLimits()
    ), "change these figures in docs/ as well: protocol, http, and all of explanation/"


def test_tables_of_commands_are_those_of_the_dialect() -> None:
    text = section(read("reference/protocol.md"), "## Classes of commands")
    shown = [(code(row[0])[0], row[1], row[2]) for row in rows(text) if code(row[0])]
    rules = [*BREWOS.commands, *BREWOS.types]
    assert [(name, kind) for name, kind, _ in shown] == [(rule.name, rule.command_class) for rule in rules]
    for (_, _, waits), rule in zip(shown, rules, strict=True):
        assert set(code(waits)) - {"mode"} == rule.waits_in_modes
        assert waits in {"yes", "no"} or rule.waits_in_modes
        assert (waits == "yes") == rule.waits
    classes = [row[0] for row in rows(text) if not code(row[0])]
    assert classes == list(CommandClass)


# Commands


def commands(command: click.Command, path: str = "brewos-relay") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")


def test_every_command_and_option_is_documented_and_no_other() -> None:
    page = read("reference/cli.md")
    documented = re.findall(r"^## (brewos-relay.*)$", page, re.M)
    assert sorted(documented) == sorted(path for path, _ in commands(cli))
    for path, command in commands(cli):
        text = section(page, f"## {path}")
        options = {
            option
            for param in command.params
            if isinstance(param, click.Option) and not param.hidden
            for option in (*param.opts, *param.secondary_opts)
        }
        if path == "brewos-relay":
            options |= {"-h", "--help"}
        assert {option for row in rows(text) for option in code(row[0])} == options, path
        for param in command.params:
            if isinstance(param, click.Argument):
                assert (param.metavar or "").strip("[].") in re.sub(r"[`\[\].]", "", text).replace(
                    "FILEcsv", "FILE.csv"
                ), path


def test_defaults_of_options_are_those_of_the_code() -> None:
    page = read("reference/cli.md")
    settings = all_settings()
    for path, command in commands(cli):
        documented = {
            code(row["Option"])[0]: row.get("Default", "").strip("`")
            for table in tables(section(page, f"## {path}"))
            for row in table
        }
        for param in command.params:
            if not isinstance(param, click.Option) or param.name == "version" or param.hidden:
                continue
            shown = documented[param.opts[0]]
            if param.required:
                assert shown == "required", (path, param.opts)
            elif param.is_flag:
                assert shown == "off", (path, param.opts)
            elif isinstance(param.default, str):
                assert shown == param.default, (path, param.opts)
            elif path == "brewos-relay serve" and settings[str(param.name)]:
                assert shown == str(settings[str(param.name)]), (path, param.opts)


def test_exit_codes_are_those_of_the_code() -> None:
    documented = [int(row[0]) for row in rows(read("reference/exit-codes.md"))]
    known = {value for name, value in vars(failures).items() if name.startswith("EXIT_")}
    assert documented == sorted({0} | known)


# Protocol


def test_table_of_close_codes_is_that_of_the_code() -> None:
    documented = [row[:3] for row in rows(section(read("reference/protocol.md"), "## Close codes"))]
    assert documented == [
        [str(int(each)), f"`{name}`", "yes" if each.may_reconnect else "no"]
        for name, each in CloseCode.__members__.items()
    ]


def test_every_status_of_a_refusal_is_documented_and_no_other() -> None:
    documented = [int(row[0]) for row in rows(section(read("reference/protocol.md"), "## Refusals"))]
    sources = ("server/admission.py", "server/incoming.py", "server/listener.py", "wire/handshake.py")
    raised = {
        int(status)
        for source in sources
        for status in re.findall(
            r"(?:Refusal|Denied)\((?:\s*\"\w+\",)?\s*(\d{3})", read(SOURCES / "brewos_relay" / source)
        )
    }
    assert documented == sorted(raised)


def test_every_message_of_the_relay_is_in_the_catalogue() -> None:
    constants = {name for name, value in vars(messages).items() if isinstance(value, Message)}
    makers = {
        name
        for name, value in vars(messages).items()
        if getattr(value, "__annotations__", {}).get("return") is Message and name != "encode"
    }
    assert [each.made_by for each in SENT if each.made_by in constants | makers] == [
        each.made_by for each in SENT
    ]
    assert {each.made_by for each in SENT} == constants | makers


def test_message_page_shows_every_form_of_each_message() -> None:
    text = read("reference/messages.md")
    shown = [json.loads(fence["code"]) for fence in FENCE.finditer(text) if fence["language"] == "json"]
    said = [json.loads(form.payload) for each in SENT for form in each.forms]
    assert shown == [*said[:3], *said[3:], *(each.example for each in RECEIVED)]


def test_every_status_of_a_command_is_documented_and_no_other() -> None:
    source = "".join(read(SOURCES / "brewos_relay" / "core" / name) for name in ("commands.py", "remote.py"))
    # The statuses are string literals in these modules.
    statuses = "delivered|queued|expired|device_offline|forbidden|unknown|bus_unavailable"
    given = set(re.findall(rf'"({statuses})"', source))
    table = section(read("reference/protocol.md"), "## Commands for an absent device")
    documented = {code(row[0])[0] for row in rows(table[table.index("| `status` |") :])}
    assert documented == given


def test_every_route_of_the_http_api_is_documented() -> None:
    served = {
        f"{method} {re.sub(r'<[a-z]+:', '<', rule.rule)}"
        for rule in application().url_map.iter_rules()
        if rule.rule.startswith("/api")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    documented = {
        route for row in rows(read("reference/http.md")) for route in code(row[0]) if " /api" in route
    }
    assert documented == served


def test_limits_on_requests_are_those_of_the_code() -> None:
    page = read("reference/http.md")
    for limit in vars(RequestLimits()).values():
        each_minute = limit.each_minute
        often = f"{each_minute} a minute" if each_minute < 600 else f"{each_minute // 60} a second"
        assert f"| {often}, {limit.burst} at once | 429 |" in page, limit._what


# All pages


def test_generated_parts_are_up_to_date() -> None:
    stale = [str(path.relative_to(ROOT)) for path, _ in outdated()]
    assert not stale, f"run `{COMMAND}`, or `nox -s tables`, and commit the result"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", read(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        assert file.is_relative_to(ROOT), f"{target} leads out of the project"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(file)), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{target}: no such heading"


@pytest.mark.parametrize("page", ["tutorial/first-steps.md", "how-to/pair-and-share.md"])
def test_quoted_texts_are_those_of_the_console(page: str) -> None:
    quoted = re.findall(r'"([A-Z][^"]+)"', FENCE.sub("", read(page)).replace("\n", " "))
    assert quoted
    package = SOURCES / "brewos_relay"
    sources = [package / "console" / "texts" / "en.json", *(package / "api").glob("*.py")]
    texts = " ".join(read(path) for path in sources)
    assert [text for text in quoted if text not in texts] == []


def test_readme_links_the_index_and_the_index_links_every_page() -> None:
    linked = {(ROOT / target).resolve() for target in LINK.findall(read(README))}
    assert DOCS / "index.md" in linked
    text = (DOCS / "index.md").read_text("utf-8")
    listed = [(DOCS / target).resolve() for target in re.findall(r"^- \[[^\]]+\]\(([^)\s]+)\)", text, re.M)]
    assert sorted(listed) == sorted(DOCS.glob("*/*.md"))
    assert "{toctree}" not in text, "the navigation of the site is made from the lists"


def test_readme_has_the_two_commands() -> None:
    fences = [fence["code"] for fence in FENCE.finditer(read(README))]
    assert "python3 -m pip install . && brewos-relay demo\n" in fences
    assert "python3 -m pip install 'nox[uv]' && nox\n" in fences


def test_every_nox_session_is_documented() -> None:
    noxfile = read(ROOT / "noxfile.py")
    sessions = re.findall(r"^@nox\.session.*\ndef (\w+)", noxfile, re.M)
    chosen = json.loads(re.findall(r"^nox\.options\.sessions = (\[.*\])$", noxfile, re.M)[0])
    documented = {code(row[0])[0]: row[2] for row in rows(read("how-to/run-the-checks.md"))}
    assert documented == {name: "yes" if name in chosen else "no" for name in sessions}
