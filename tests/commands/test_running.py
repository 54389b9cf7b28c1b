import errno
import socket
import sys
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.errors import RegistryError, SettingsError
from brewos_relay.settings import LOG_FORMATS, LOG_LEVELS, Settings

from .conftest import SECRET, Run, assert_refused

StandIn = Callable[..., list[tuple[tuple[Any, ...], dict[str, Any]]]]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Give a function that puts a function in the place of a module's, and tells how it was called."""

    def stand_in(
        module: str, name: str, *, result: object = None, problem: BaseException | None = None
    ) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def called(*args: Any, **kwargs: Any) -> object:
            calls.append((args, kwargs))
            if problem is not None:
                raise problem
            return result

        replacement = ModuleType(module)
        setattr(replacement, name, called)
        monkeypatch.setitem(sys.modules, module, replacement)
        return calls

    return stand_in


SERVE = ("brewos_relay.server.run", "run_server")
DEMO = ("brewos_relay.commands.run_demo", "run_demo")
TAIL = ("brewos_relay.commands.run_client", "run_tail")
SEND = ("brewos_relay.commands.run_client", "run_send")

IN_USE = OSError(errno.EADDRINUSE, "Address already in use")


# serve


def test_serve_runs_with_the_settings(
    run: Run, secret: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(*SERVE)
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("BREWOS_RELAY_HOST", "::1")
    args = ["--port", "0", "--data-dir", "elsewhere", "--log-level", "DEBUG"]
    assert run("serve", *args).code == 0
    expected = Settings(host="::1", port=0, jwt_secret=SECRET, data_dir=Path("elsewhere"), log_level="debug")
    assert [args for args, _ in calls] == [(expected,)]
    assert run("serve", "--host", "127.0.0.1").code == 0
    assert (calls[1][0][0].host, calls[1][0][0].port) == ("127.0.0.1", 1)


def test_serve_with_tls_behind_a_proxy(run: Run, secret: str, stand_in: StandIn) -> None:
    calls = stand_in(*SERVE)
    args = ["--public-url", "https://relay.example.com/", "--tls-cert", "c.pem", "--tls-key", "k.pem"]
    args += ["--redirect-port", "80", "--proxy-protocol", "--trusted-proxy", "10.0.0.0/8"]
    assert run("serve", *args, "--trusted-proxy", "::1").code == 0
    assert run("serve", "--tls-self-signed").code == 0
    first = Settings(
        jwt_secret=SECRET,
        public_url="https://relay.example.com",
        tls_cert=Path("c.pem"),
        tls_key=Path("k.pem"),
        redirect_port=80,
        proxy_protocol=True,
        trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("::1")),
    )
    second = Settings(jwt_secret=SECRET, tls_self_signed=True)
    assert [args for args, _ in calls] == [(first,), (second,)]


def test_options_that_are_left_out_leave_the_environment_alone(
    run: Run, secret: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(*SERVE)
    for name, value in {"TLS_SELF_SIGNED": "yes", "PROXY_PROTOCOL": "1", "TRUSTED_PROXIES": "::1"}.items():
        monkeypatch.setenv(f"BREWOS_RELAY_{name}", value)
    assert run("serve").code == 0
    settings = calls[0][0][0]
    assert (settings.tls_self_signed, settings.proxy_protocol) == (True, True)
    assert settings.trusted_proxies == (ip_network("::1"),)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--trusted-proxy", "home"], ["--trusted-proxy is 'home'", "networks like"]),
        (["--public-url", "relay"], ["--public-url is 'relay'", "an http or https address"]),
        (["--tls-cert", "c.pem"], ["BREWOS_RELAY_TLS_CERT needs BREWOS_RELAY_TLS_KEY"]),
        (["--redirect-port", "80"], ["BREWOS_RELAY_REDIRECT_PORT needs"]),
    ],
)
def test_serve_with_bad_options(
    run: Run, secret: str, stand_in: StandIn, args: list[str], parts: list[str]
) -> None:
    assert_refused(run("serve", *args), 3, *parts)


def test_serve_needs_a_secret(run: Run, stand_in: StandIn) -> None:
    calls = stand_in(*SERVE)
    assert_refused(run("serve"), 3, "JWT_SECRET is not set", "`brewos-relay secret`")
    assert calls == []


def test_serve_with_bad_settings(run: Run, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREWOS_RELAY_STALL_S", "soon")
    assert_refused(run("serve"), 3, "BREWOS_RELAY_STALL_S is 'soon'", "a number of seconds greater than 0")


@pytest.mark.parametrize(
    ("problem", "parts"),
    [
        (IN_USE, ["Address already in use; choose another address with --host and --port"]),
        (ExceptionGroup("", [ExceptionGroup("", [IN_USE])]), ["Address already in use"]),
        (OSError("no address"), ["no address"]),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "web"),
            ["web: No such file or directory\n"],
        ),
        (RegistryError("cannot open the database\nx"), ["cannot open the database x"]),
    ],
)
def test_serve_that_could_not_start(
    run: Run, secret: str, stand_in: StandIn, problem: Exception, parts: list[str]
) -> None:
    stand_in(*SERVE, problem=problem)
    assert_refused(run("serve"), 3, *parts)


@pytest.mark.parametrize("problem", [ValueError("a bug"), ExceptionGroup("", [IN_USE, ValueError("a bug")])])
def test_a_bug_is_not_taken_for_a_failure_to_start(
    run: Run, secret: str, stand_in: StandIn, problem: Exception
) -> None:
    stand_in(*SERVE, problem=problem)
    with pytest.raises(type(problem)) as caught:
        run("serve")
    assert caught.value is problem


def test_what_logs_can_be_is_that_of_the_settings(run: Run) -> None:
    said = run("serve", "--help").out
    assert f"[{'|'.join(LOG_LEVELS)}]" in said
    assert f"[{'|'.join(LOG_FORMATS)}]" in said


# demo


@pytest.mark.parametrize(("args", "port"), [([], None), (["--port", "0"], 0), (["--port", "8080"], 8080)])
def test_demo(run: Run, stand_in: StandIn, args: list[str], port: int | None) -> None:
    calls = stand_in(*DEMO)
    assert run("demo", *args).code == 0
    assert calls == [((port,), {})]


def test_demo_that_could_not_start(run: Run, stand_in: StandIn) -> None:
    stand_in(*DEMO, problem=IN_USE)
    assert_refused(run("demo"), 3, "Address already in use; choose another port with --port")


# tail and send


def test_tail(run: Run, stand_in: StandIn) -> None:
    calls = stand_in(*TAIL, result=0)
    outcome = run("tail", "brw-0000000a", "--token", "t", "--url", "https://relay", "--json")
    assert outcome.code == 0
    assert calls == [
        ((), {"url": "https://relay", "token": "t", "device_id": "BRW-0000000A", "as_json": True})
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


def test_send(run: Run, stand_in: StandIn) -> None:
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
            },
        )
    ]


def test_url_and_token_may_come_from_a_dotenv(
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


def test_a_dotenv_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff")
    assert_refused(run("tail", "BRW-0000000A"), 1, ".env cannot be read")


@pytest.mark.parametrize("args", [("tail", "BRW-0000000A"), ("send", "BRW-0000000A", "tare")])
@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token(
    run: Run, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], token: str
) -> None:
    if token is not None:
        monkeypatch.setenv("BREWOS_RELAY_TOKEN", token)
    see = f"See `brewos-relay {args[0]} --help`."
    assert_refused(run(*args), 2, "--token", "BREWOS_RELAY_TOKEN", "`brewos-relay token`", see)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_tail_and_send_end_with_the_code_they_are_given(run: Run, stand_in: StandIn, code: int) -> None:
    stand_in(*TAIL, result=code)
    assert run("tail", "BRW-0000000A", "--token", "t").code == code
    stand_in(*SEND, result=code)
    assert run("send", "BRW-0000000A", "brew", "--token", "t").code == code


def test_tail_and_send_that_fail(run: Run, stand_in: StandIn) -> None:
    stand_in(*TAIL, problem=ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
    assert_refused(run("tail", "BRW-0000000A", "--token", "t"), 1, "Connection refused")
    stand_in(*SEND, problem=SettingsError("--url is 'x'"))
    see = "See `brewos-relay send --help`."
    assert_refused(run("send", "BRW-0000000A", "brew", "--token", "t"), 2, "--url is 'x'", see)
    stand_in(*SEND, problem=RelayUnreachable("cannot connect"))
    assert_refused(run("send", "BRW-0000000A", "brew", "--token", "t"), 1, "brewos-relay: cannot connect\n")


def test_without_a_server(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    for args in (("tail", "BRW-0000000A"), ("send", "BRW-0000000A", "tare")):
        outcome = run(*args, "--token", "t", "--url", url)
        assert_refused(outcome, 1)
        assert outcome.err == (
            f"brewos-relay: cannot connect to {url} (Connection refused);"
            " start a relay with `brewos-relay serve`, or name another one with --url\n"
        )


def test_usage_that_only_the_client_sees(run: Run) -> None:
    see = "See `brewos-relay send --help`."
    args = ("send", "BRW-0000000A", "set_mode", "--token", "t")
    assert_refused(run(*args, "on"), 2, "'on' is not a field of a command", see)
    assert_refused(run(*args, "--url", "relay.example"), 2, "http://HOST[:PORT]", see)


def test_the_help_says_what_json_is_made_of(run: Run) -> None:
    assert "one line of JSON, also what came as MessagePack" in " ".join(run("tail", "--help").out.split())


def test_a_reader_of_tail_that_has_gone(run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # click puts something else there, which must not stay
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    stand_in(*TAIL, problem=BrokenPipeError(errno.EPIPE, "Broken pipe"))
    outcome = run("tail", "BRW-0000000A", "--token", "t")
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "")
