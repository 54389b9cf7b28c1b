"""The documents say what the code does: tables are compared, links followed, examples run."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import click
import pytest

from brewos_relay import messages
from brewos_relay.api.app import create_app
from brewos_relay.cli import cli, common
from brewos_relay.core.limits import Limits
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message
from brewos_relay.settings import Settings, variable_names
from support.process import SOURCES, environment

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
DEADLINE_S = 60.0

_FENCE = re.compile(r"^(?P<mark><!-- runs -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")


def read(page: Path | str) -> str:
    return (DOCS / page if isinstance(page, str) else page).read_text("utf-8")


def section(text: str, heading: str) -> str:
    """Give what stands below a heading, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    match = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.M | re.S)
    assert match, f"no heading {heading!r}"
    return match[1]


def rows(text: str) -> list[list[str]]:
    """Give the cells of all table rows in a text, without heads and rules."""
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines):
        is_head = number + 1 < len(lines) and lines[number + 1].startswith("|---")
        if line.startswith("|") and not line.startswith("|---") and not is_head:
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def code(cell: str) -> list[str]:
    return _CODE.findall(cell)


# Settings


def default_of(value: object) -> str:
    """Write a default as the documents do."""
    if value is None:
        return "not set"
    return f"`{written(value)}`" if value != "" else "empty"


def written(value: object) -> str:
    """Write a value as it stands in a variable."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def unit_of(name: str) -> str:
    return next(
        (unit for end, unit in {"_s": "seconds", "_bytes": "bytes"}.items() if name.endswith(end)), ""
    )


def all_settings() -> dict[str, object]:
    """Give every setting with its default, in the order in which they are declared."""
    named = {each.name: getattr(Settings(), each.name) for each in fields(Settings) if each.name != "limits"}
    return named | {each.name: getattr(Limits(), each.name) for each in fields(Limits)}


def test_the_table_of_settings_is_that_of_the_code() -> None:
    options = {param.name: param.opts[0] for param in cli.commands["serve"].params}
    expected = [
        [
            ", ".join(f"`{variable}`" for variable in variable_names(name)),
            f"`{options[name]}`" if name in options else "",
            default_of(value),
            unit_of(name),
        ]
        for name, value in all_settings().items()
    ]
    documented = rows(read("reference/settings.md"))
    assert [row[:4] for row in documented] == expected
    assert all(row[4] for row in documented)


def test_the_example_of_a_dotenv_file_has_every_setting_and_its_default() -> None:
    found = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", read(ROOT / ".env.example"), re.M))
    assert set(found) == {variable_names(name)[0] for name in all_settings()}
    for name, value in all_settings().items():
        shown = found[variable_names(name)[0]]
        assert shown == (
            "" if value is None else f"{value:g}" if isinstance(value, float) else written(value)
        )


def test_the_bounds_that_pages_repeat_are_those_of_the_code() -> None:
    assert (
        Limits(
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
            admit_rate=200,
            request_head_s=10,
            admission_s=4,
            message_s=30,
            stall_s=10,
            close_s=1,
            http_request_s=60,
            http_idle_s=30,
            device_min_age_s=8,
            device_first_frame_s=10,
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
            never_wait=Limits().never_wait,  # see below
        )
        == Limits()
    ), "change these figures in docs/ as well: protocol, http, and all of explanation/"


def test_the_commands_that_never_wait_are_those_of_the_code() -> None:
    table = rows(section(read("reference/protocol.md"), "## Commands for an absent device"))
    named = [name for row in table[:3] for name in code(row[0])]
    assert named[:2] == ["set_mode", "mode"]
    modes = [name for name in named[2:] if f"set_mode:{name}" in Limits().never_wait]
    others = [name for name in named[2:] if name not in modes]
    assert (*(f"set_mode:{mode}" for mode in modes), *others) == Limits().never_wait


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
            if isinstance(param, click.Option)
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


def test_the_defaults_of_options_are_those_of_the_code() -> None:
    page = read("reference/cli.md")
    settings = all_settings()
    for path, command in commands(cli):
        documented = {code(row[0])[0]: row[1].strip("`") for row in rows(section(page, f"## {path}"))}
        for param in command.params:
            if not isinstance(param, click.Option) or param.name == "version":
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


def test_the_exit_codes_are_those_of_the_code() -> None:
    documented = [int(row[0]) for row in rows(read("reference/exit-codes.md"))]
    known = {value for name, value in vars(common).items() if name.startswith("EXIT_")}
    assert documented == sorted({0} | known)


# Protocol


def test_the_table_of_close_codes_is_that_of_the_code() -> None:
    documented = [row[:3] for row in rows(section(read("reference/protocol.md"), "## Close codes"))]
    assert documented == [
        [str(int(each)), f"`{name}`", "yes" if each.come_back else "no"]
        for name, each in CloseCode.__members__.items()
    ]


def test_every_status_of_a_refusal_is_documented_and_no_other() -> None:
    documented = [int(row[0]) for row in rows(section(read("reference/protocol.md"), "## Refusals"))]
    sources = ("server/admission.py", "server/listener.py", "wire/handshake.py")
    raised = {
        int(status)
        for source in sources
        for status in re.findall(r"Refusal\(\s*(\d{3})", read(SOURCES / "brewos_relay" / source))
    }
    assert documented == sorted(raised)


def said_by_the_relay() -> dict[str, list[Message]]:
    """Give an example of each form of the messages that the relay says, by the name of what makes it."""
    found = {name: [value] for name, value in vars(messages).items() if isinstance(value, Message)}
    seen = {"last_seen": "2026-01-02T03:04:05.678Z"}
    return found | {
        "connected_device": [messages.connected_device(1)],
        "connected_client": [
            messages.connected_client("x", "BRW-12AB34CD", device_online=False, timestamp_ms=1)
        ],
        "device_offline_error": [messages.device_offline_error("BRW-12AB34CD")],
        "device_status": [
            messages.device_status("BRW-12AB34CD", online=False, **seen),
            messages.device_status("BRW-12AB34CD", online=True, snapshotAgeMs=1, **seen),
            messages.device_status(
                "BRW-12AB34CD", online=False, messageQueued=True, queuedMessages=1, queueTTL=10000, **seen
            ),
        ],
        "request_state": [messages.request_state(1)],
        "keepalive": [messages.keepalive(1)],
        "pong": [messages.pong(1, 1)],
        "metrics": [
            messages.metrics(1, session_id="x", clients=1, device_online=True, queued_messages=0),
        ],
        "queued_message_sent": [messages.queued_message_sent("command", 1)],
        "command_status": [messages.command_status("x", "delivered", 1)],
        "token_expiring": [messages.token_expiring("x", 1)],
        "auth_refreshed": [messages.auth_refreshed("x"), messages.auth_refreshed(None, error="x")],
        "restarting": [messages.restarting(1)],
    }


def test_no_message_of_the_relay_is_forgotten_here() -> None:
    makers = {
        name
        for name, value in vars(messages).items()
        if getattr(value, "__annotations__", {}).get("return") is Message and name != "encode"
    }
    assert makers == {name for name in said_by_the_relay() if name.islower()}


def test_the_messages_of_the_relay_are_documented_as_they_are() -> None:
    text = section(read("reference/protocol.md"), "## What the relay says")
    documented = [json.loads(fence["code"]) for fence in _FENCE.finditer(text) if fence["language"] == "json"]
    said = [each for examples in said_by_the_relay().values() for each in examples]
    assert sorted(map(shape, documented)) == sorted(shape(each.payload) for each in said)


def shape(content: dict[str, Any] | bytes) -> str:
    """Give a message with its fixed values, and just the types of the others."""
    content = json.loads(content) if isinstance(content, bytes) else content
    fixed = {"type", "message", "online", "success", "messageQueued", "queueTTL", "refreshRequired"}
    if content["type"] == "error":
        fixed.add("error")
    return repr([(key, value if key in fixed else type(value).__name__) for key, value in content.items()])


def test_every_status_of_a_command_is_documented_and_no_other() -> None:
    source = read(SOURCES / "brewos_relay" / "core" / "commands.py")
    # Each status is written out where it is given, and nowhere else stands a text alone.
    given = set(re.findall(r'"(delivered|queued|expired|device_offline)"', source))
    table = section(read("reference/protocol.md"), "## Commands for an absent device")
    documented = {code(row[0])[0] for row in rows(table[table.index("| `status` |") :])}
    assert documented == given


def test_every_route_of_the_http_api_is_documented() -> None:
    anything = cast("Any", None)
    app = create_app(relay=anything, store=anything, tokens=anything, web_dist_path=None)
    served = {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert set(re.findall(r"^## `(\w+ /api\S*)`$", read("reference/http.md"), re.M)) == served


# All pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", read(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        assert file.is_relative_to(ROOT), f"{target} leads out of the project"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", read(file)), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{target}: no such heading"


def test_the_readme_links_to_every_page() -> None:
    linked = {(ROOT / target).resolve() for target in _LINK.findall(read(README))}
    assert linked >= set(DOCS.rglob("*.md"))


def test_the_readme_has_the_two_commands() -> None:
    fences = [fence["code"] for fence in _FENCE.finditer(read(README))]
    assert "python3 -m pip install . && brewos-relay demo\n" in fences
    assert "python3 -m pip install 'nox[uv]' && nox\n" in fences


def test_every_nox_session_is_documented() -> None:
    noxfile = read(ROOT / "noxfile.py")
    sessions = re.findall(r"^@nox\.session.*\ndef (\w+)", noxfile, re.M)
    chosen = json.loads(re.findall(r"^nox\.options\.sessions = (\[.*\])$", noxfile, re.M)[0])
    documented = {code(row[0])[0]: row[2] for row in rows(read("how-to/run-the-checks.md"))}
    assert documented == {name: "yes" if name in chosen else "no" for name in sessions}


# Examples


def runnable(language: str) -> list[Any]:
    """Give the examples that are marked to be run, each with what is said to be printed, if it is said."""
    found = []
    for page in PAGES:
        fences = list(_FENCE.finditer(read(page)))
        for number, fence in enumerate(fences):
            if fence["mark"] is None or fence["language"] != language:
                continue
            follower = fences[number + 1] if number + 1 < len(fences) else None
            output = follower["code"] if follower is not None and follower["language"] == "text" else None
            found.append(pytest.param(fence["code"], output, id=f"{page.name}-{number}"))
    return found


@pytest.mark.parametrize(("example", "output"), runnable("python"))
def test_the_python_examples_print_what_they_are_said_to(
    example: str, output: str | None, tmp_path: Path
) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    assert output is not None
    assert ran.stdout == output


def test_there_are_examples() -> None:
    assert len(runnable("python")) >= 3


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """Give an environment with the command `brewos-relay` in it, and nothing that sets it up."""
    command = tmp_path / "bin" / "brewos-relay"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m brewos_relay "$@"\n')
    command.chmod(0o755)
    (tmp_path / "here").mkdir()
    settings = environment(PATH=f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    del settings["JWT_SECRET"]  # the README makes one
    return settings


def test_the_commands_of_the_readme_work(tmp_path: Path, shell: dict[str, str]) -> None:
    text = section(read(README), "## Use it for real")
    block = next(fence["code"] for fence in _FENCE.finditer(text) if fence["mark"])
    *before, serve, tail = block.splitlines()
    assert serve == "brewos-relay serve"
    here = tmp_path / "here"
    for line in [*before, "brewos-relay device list"]:
        ran = subprocess.run(
            ["/bin/sh", "-ec", line], cwd=here, env=shell, capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert ran.returncode == 0, (line, ran.stderr)
    assert "BRW-12AB34CD" in ran.stdout
    with running(f"exec {serve} --host 127.0.0.1 --port 0", here, shell) as server:
        match = re.search(r"\((http://\S+)\)", line_of(server))
        assert match
        with running(f"exec {tail}", here, shell | {"BREWOS_RELAY_URL": match[1]}) as app:
            assert "attached to BRW-12AB34CD; the machine is offline" in line_of(app)


class running:  # noqa: N801 - it reads as a word in a `with`
    """Run a shell command for as long as the block; it must end well when it is interrupted.

    It is killed after `DEADLINE_S`, so that nobody waits for its output for ever.
    """

    def __init__(self, line: str, folder: Path, environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-ec", line],
            cwd=folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._deadline = threading.Timer(DEADLINE_S, self._process.kill)
        self._deadline.start()

    def __enter__(self) -> subprocess.Popen[str]:
        return self._process

    def __exit__(self, *_: object) -> None:
        process = self._process
        assert process.stdout is not None
        try:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=DEADLINE_S) == 0
        finally:
            self._deadline.cancel()
            process.kill()
            process.wait()
            process.stdout.close()


def line_of(process: subprocess.Popen[str]) -> str:
    """Read one line, or an empty text once there will be none."""
    assert process.stdout is not None
    return process.stdout.readline()
