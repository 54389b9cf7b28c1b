import errno
from ipaddress import ip_network
from pathlib import Path

import pytest

from brewos_relay.errors import RegistryError
from brewos_relay.settings import LOG_FORMATS, LOG_LEVELS, Settings

from .conftest import SECRET, Run, StandIn, assert_refused

SERVE = ("brewos_relay.server.run", "run_server")

IN_USE = OSError(errno.EADDRINUSE, "Address already in use")


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


def test_omitted_options_do_not_override_the_environment(
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
        (["--public-url", "relay"], ["--public-url is 'relay'", "an http or https URL"]),
        (["--tls-cert", "c.pem"], ["BREWOS_RELAY_TLS_CERT requires BREWOS_RELAY_TLS_KEY"]),
        (["--redirect-port", "80"], ["BREWOS_RELAY_REDIRECT_PORT requires"]),
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
def test_serve_that_cannot_start_exits_with_3(
    run: Run, secret: str, stand_in: StandIn, problem: Exception, parts: list[str]
) -> None:
    stand_in(*SERVE, problem=problem)
    assert_refused(run("serve"), 3, *parts)


@pytest.mark.parametrize("problem", [ValueError("a bug"), ExceptionGroup("", [IN_USE, ValueError("a bug")])])
def test_bug_is_not_reported_as_a_failure_to_start(
    run: Run, secret: str, stand_in: StandIn, problem: Exception
) -> None:
    stand_in(*SERVE, problem=problem)
    with pytest.raises(type(problem)) as caught:
        run("serve")
    assert caught.value is problem


def test_log_levels_and_formats_are_those_of_the_settings(run: Run) -> None:
    said = run("serve", "--help").out
    assert f"[{'|'.join(LOG_LEVELS)}]" in said
    assert f"[{'|'.join(LOG_FORMATS)}]" in said
