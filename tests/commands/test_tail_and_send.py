"""Tests of `brewos-relay tail` and `send`."""

import errno
import socket
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest

from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.errors import SettingsError
from support.process import run_command, serve_here

from .conftest import Run, StandIn, assert_refused

TAIL = ("brewos_relay.commands.run_client", "run_tail")
SEND = ("brewos_relay.commands.run_client", "run_send")


def test_tail_runs_with_its_arguments(run: Run, stand_in: StandIn) -> None:
    calls = stand_in(*TAIL, result=0)
    outcome = run("tail", "brw-0000000a", "--token", "t", "--url", "https://relay", "--json")
    assert outcome.code == 0
    assert calls == [
        (
            (),
            {
                "url": "https://relay",
                "token": "t",
                "device_id": "BRW-0000000A",
                "as_json": True,
                "ssl_context": ANY,
            },
        )
    ]


def test_tail_takes_url_and_token_from_the_environment(
    run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(*TAIL, result=0)
    monkeypatch.setenv("BREWOS_RELAY_TOKEN", "t")
    run("tail", "BRW-0000000A")
    monkeypatch.setenv("BREWOS_RELAY_URL", "https://relay")
    run("tail", "BRW-0000000A")
    assert [kwargs["url"] for _, kwargs in calls] == ["http://127.0.0.1:3001", "https://relay"]
    assert {kwargs["token"] for _, kwargs in calls} == {"t"}


def test_send_runs_with_its_arguments(run: Run, stand_in: StandIn) -> None:
    calls = stand_in(*SEND, result=0)
    args = ["brw-0000000a", "set_temp", "boiler=brew", "temp=93.5", "--token", "t"]
    assert run("send", *args).code == 0
    assert calls == [
        (
            (),
            {
                "url": "http://127.0.0.1:3001",
                "token": "t",
                "device_id": "BRW-0000000A",
                "command": "set_temp",
                "fields": ("boiler=brew", "temp=93.5"),
                "ssl_context": None,
            },
        )
    ]


def test_url_and_token_come_from_a_dotenv(
    run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("BREWOS_RELAY_TOKEN=t\nBREWOS_RELAY_URL=https://relay\n")
    calls = stand_in(*SEND, result=0)
    run("send", "BRW-0000000A", "tare")
    monkeypatch.setenv("BREWOS_RELAY_TOKEN", "from the environment")
    run("send", "BRW-0000000A", "tare", "--url", "https://other")
    assert [(kwargs["url"], kwargs["token"]) for _, kwargs in calls] == [
        ("https://relay", "t"),
        ("https://other", "from the environment"),
    ]


def test_port_and_tls_are_those_of_the_server_of_the_folder(
    run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BREWOS_RELAY_TOKEN", "t")
    calls = stand_in(*TAIL, result=0)
    (tmp_path / ".env").write_text("PORT=4443\nBREWOS_RELAY_TLS_SELF_SIGNED=true\n")
    assert run("tail", "BRW-0000000A").code == 0
    assert calls[0][1]["url"] == "https://127.0.0.1:4443"
    assert calls[0][1]["ssl_context"] is not None
    (tmp_path / ".env").write_text("PORT=0\n")
    assert_refused(run("tail", "BRW-0000000A"), 2, "any free port", "--url")
    (tmp_path / ".env").write_text("PORT=x\n")
    assert_refused(run("tail", "BRW-0000000A"), 2, "PORT is 'x'")
    assert run("tail", "BRW-0000000A", "--url", "https://relay").code == 0


async def test_certificate_of_an_unknown_ca_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    async with serve_here(tmp_path, settings={"tls_self_signed": True}, within_s=30) as here:
        url = f"https://127.0.0.1:{here.address[1]}"
        ran = await run_command(tmp_path / "client", "tail", "BRW-0000000A", "--url", url, "--token", "t")
        assert ran.returncode == 1
        assert b"certificate verify failed" in ran.stderr
        assert b"SSL_CERT_FILE=ca.crt" in ran.stderr


def test_unreadable_dotenv_is_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff")
    assert_refused(run("tail", "BRW-0000000A"), 1, ".env cannot be read")


@pytest.mark.parametrize("args", [("tail", "BRW-0000000A"), ("send", "BRW-0000000A", "tare")])
@pytest.mark.parametrize("token", [None, ""])
def test_missing_token_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], token: str
) -> None:
    if token is not None:
        monkeypatch.setenv("BREWOS_RELAY_TOKEN", token)
    see = f"See `brewos-relay {args[0]} --help`."
    assert_refused(run(*args), 2, "--token", "BREWOS_RELAY_TOKEN", "`brewos-relay token`", see)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_tail_and_send_exit_with_the_code_of_the_client(run: Run, stand_in: StandIn, code: int) -> None:
    stand_in(*TAIL, result=code)
    assert run("tail", "BRW-0000000A", "--token", "t").code == code
    stand_in(*SEND, result=code)
    assert run("send", "BRW-0000000A", "brew", "--token", "t").code == code


def test_errors_of_the_client_are_one_line(run: Run, stand_in: StandIn) -> None:
    stand_in(*TAIL, problem=ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
    assert_refused(run("tail", "BRW-0000000A", "--token", "t"), 1, "Connection refused")
    stand_in(*SEND, problem=SettingsError("--url is 'x'"))
    see = "See `brewos-relay send --help`."
    assert_refused(run("send", "BRW-0000000A", "brew", "--token", "t"), 2, "--url is 'x'", see)
    stand_in(*SEND, problem=RelayUnreachable("cannot connect"))
    assert_refused(run("send", "BRW-0000000A", "brew", "--token", "t"), 1, "brewos-relay: cannot connect\n")


def test_missing_server_is_reported_with_advice(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    for args in (("tail", "BRW-0000000A"), ("send", "BRW-0000000A", "tare")):
        outcome = run(*args, "--token", "t", "--url", url)
        assert_refused(outcome, 1)
        assert outcome.err == (
            f"brewos-relay: cannot connect to {url} (Connection refused);"
            " start a relay with `brewos-relay serve`, or name another one with --url\n"
        )


def test_wrong_usage_found_by_the_client_exits_with_2(run: Run) -> None:
    see = "See `brewos-relay send --help`."
    args = ("send", "BRW-0000000A", "set_mode", "--token", "t")
    assert_refused(run(*args, "on"), 2, "'on' is not a field of a command", see)
    assert_refused(run(*args, "--url", "relay.example"), 2, "http://HOST[:PORT]", see)


def test_help_of_json_mentions_messagepack(run: Run) -> None:
    assert "one line of JSON; MessagePack is converted" in " ".join(run("tail", "--help").out.split())


def test_closed_pipe_ends_tail_quietly(run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # click replaces it; restore it afterwards
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    stand_in(*TAIL, problem=BrokenPipeError(errno.EPIPE, "Broken pipe"))
    outcome = run("tail", "BRW-0000000A", "--token", "t")
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "")
