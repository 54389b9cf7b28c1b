import errno
import os
import re
import select
import signal
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from cryptography.hazmat.primitives import serialization

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.commands import init, run_init
from brewos_relay.registry.invites import redeem_invite
from brewos_relay.server.local_ca import LocalCa
from brewos_relay.settings import load_settings
from brewos_relay.vocabulary import now_ms
from support.certificates import write_certificate
from support.process import environment
from support.workers import needs_proc, wait_until_asleep

from .conftest import SECRET, Run, add_account, assert_refused, opened

UNSET = ("JWT_SECRET", "PORT", "DATA_DIR", "PUBLIC_URL")
BASIC = ("init", "--url", "https://coffee.example", "--email", "ada@example.com")


@pytest.fixture(autouse=True)
def free_ports(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Let all ports be free, except those that a test puts into the result, with an error number."""
    problems: dict[int, int] = {}
    monkeypatch.setattr(run_init, "find_port_problem", lambda _host, port: problems.get(port))
    return problems


def dotenv() -> dict[str, str]:
    lines = Path(".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def everything() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def without_database(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if "brewos-relay.db" not in path}


def test_one_command_sets_up_a_household(run: Run, tmp_path: Path) -> None:
    outcome = run(*BASIC)
    assert (outcome.code, outcome.err) == (0, "")
    assert stat.S_IMODE(Path(".env").stat().st_mode) == 0o600
    settings = load_settings(environ={})
    assert (settings.port, settings.redirect_port, settings.tls_self_signed) == (443, 80, True)
    assert settings.public_url == "https://coffee.example"
    assert len(settings.require_jwt_secrets()[0]) >= 43
    ca = LocalCa.load(tmp_path / "data")
    assert ca is not None
    assert ca.permits("coffee.example")
    assert ca.fingerprint in outcome.out
    assert "https://coffee.example/ca has instructions" in outcome.out
    assert "brewos-relay serve" in outcome.out
    assert settings.jwt_secret not in outcome.out
    link = re.search(r"https://coffee\.example/login#invite=(\S+)", outcome.out)
    assert link
    with opened() as db:
        user = redeem_invite(db, hash_secret(link[1]), now_ms=now_ms())
    assert user is not None
    assert (user.email, user.is_admin) == ("ada@example.com", True)


def test_second_run_changes_nothing(run: Run) -> None:
    run(*BASIC)
    before = without_database(everything())
    for args in (("init",), ("init", "--yes"), BASIC[:3]):
        outcome = run(*args)
        assert outcome.code == 0
        assert "ada@example.com was invited as administrator" in outcome.out
        assert without_database(everything()) == before
    assert "#invite=" in run(*BASIC).out
    add_account("u", "bob@example.com", is_admin=True)
    outcome = run(*BASIC)
    assert "There is an administrator already" in outcome.out
    assert "#invite=" not in outcome.out
    assert without_database(everything()) == before


def test_settings_and_comments_of_an_earlier_file_stay(run: Run) -> None:
    lines = ["# mine", "PORT=4443", f"JWT_SECRET={SECRET}", "#BREWOS_RELAY_LOG_LEVEL=info", "export A='b c'"]
    Path(".env").write_text("\n".join(lines))
    Path(".env").chmod(0o644)
    assert run("init", "--email", "ada@example.com").code == 0
    assert Path(".env").read_text().splitlines() == lines
    assert stat.S_IMODE(Path(".env").stat().st_mode) == 0o600
    assert run("init", "--url", "https://coffee.example").code == 0
    assert Path(".env").read_text().splitlines() == [*lines, "PUBLIC_URL=https://coffee.example"]


def test_another_value_replaces_one_only_with_yes(run: Run) -> None:
    run(*BASIC)
    secret = dotenv()["JWT_SECRET"]
    assert_refused(run("init", "--port", "4443"), 1, "PORT is '443' in .env, not '4443'", "--yes")
    assert dotenv()["PORT"] == "443"
    assert run("init", "--port", "4443", "--yes").code == 0
    assert (dotenv()["PORT"], dotenv()["JWT_SECRET"]) == ("4443", secret)


def test_environment_goes_first_and_is_not_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("PORT", "3001")
    assert_refused(run(*BASIC, "--port", "443"), 1, "PORT is '3001' in the environment", "change it there")
    assert not Path(".env").exists()
    assert run(*BASIC).code == 0
    assert set(dotenv()) == {"PUBLIC_URL"}


def test_short_secret_is_refused_and_never_replaced(run: Run) -> None:
    Path(".env").write_text("JWT_SECRET=short\n")
    assert_refused(run(*BASIC, "--yes"), 1, "JWT_SECRET has 5 bytes")
    assert Path(".env").read_text() == "JWT_SECRET=short\n"


def test_empty_secret_of_the_example_is_filled_in(run: Run) -> None:
    example = Path(__file__).parents[2] / ".env.example"
    Path(".env").write_text(example.read_text())
    assert run(*BASIC).code == 0
    text = Path(".env").read_text()
    assert len(text.splitlines()) == len(example.read_text().splitlines())
    assert "\nPORT=443\n" in text
    assert load_settings(environ={}).require_jwt_secrets()


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        (
            ["--url", "coffee.local"],
            2,
            ["'coffee.local'", "an http or https URL", "https://relay.example.com"],
        ),
        (["--url", "https://a/b"], 2, ["without a path"]),
        (["--email", "ada"], 2, ["'ada'"]),
        (["--port", "70000"], 2, ["70000"]),
        ([], 2, ["--url is missing"]),
        (["--url", "https://a.example"], 2, ["--email is missing"]),
        (["--yes"], 2, ["--email is missing"]),
        ([*BASIC[1:], "--tls-cert", "c.pem"], 1, ["BREWOS_RELAY_TLS_CERT requires BREWOS_RELAY_TLS_KEY"]),
        (["--url", "http://a.example", *BASIC[3:], "--new-ca"], 1, ["--new-ca needs", "https URL"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    run: Run, args: list[str], code: int, parts: list[str]
) -> None:
    assert_refused(run("init", *args), code, *parts)
    assert everything() == {}


def test_port_in_use_is_refused_with_the_remedy(run: Run, free_ports: dict[int, int]) -> None:
    free_ports[443] = errno.EADDRINUSE
    assert_refused(run(*BASIC), 1, "port 443 is in use", "`ss -ltnp`", "--port", "--behind-proxy")
    assert everything() == {}
    del free_ports[443]
    free_ports[80] = errno.EADDRINUSE
    outcome = run(*BASIC)
    assert "http:// addresses will not be redirected" in outcome.out
    assert "BREWOS_RELAY_REDIRECT_PORT" not in dotenv()
    free_ports[443] = errno.EADDRINUSE  # by the relay itself
    assert run("init").code == 0


def test_ports_below_1024_without_permission_get_the_commands(run: Run, free_ports: dict[int, int]) -> None:
    free_ports |= {443: errno.EACCES, 80: errno.EACCES}
    outcome = run(*BASIC)
    assert outcome.code == 0
    assert "1. Allow" in outcome.out
    assert "net.ipv4.ip_unprivileged_port_start=80 " in outcome.out
    assert "sudo sysctl --system" in outcome.out


def test_relay_for_a_try_on_this_computer(run: Run) -> None:
    outcome = run("init", "--url", "http://127.0.0.1:3001", "--email", "ada@example.com")
    assert outcome.code == 0
    settings = load_settings(environ={})
    assert (settings.host, settings.port, settings.speaks_tls) == ("127.0.0.1", 3001, False)
    assert "local CA" not in outcome.out
    assert not Path("data/local-ca").exists()


def test_relay_behind_a_proxy_listens_on_this_computer_only(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*BASIC, "--behind-proxy").code == 0
    settings = load_settings(environ={})
    assert (settings.host, settings.port, settings.speaks_tls) == ("127.0.0.1", 3001, False)
    assert [str(network) for network in settings.trusted_proxies] == ["127.0.0.1/32", "::1/128"]
    Path(".env").unlink()
    monkeypatch.setenv("BREWOS_RELAY_TRUSTED_PROXIES", "172.31.250.0/29")  # a container
    assert run(*BASIC, "--behind-proxy").code == 0
    assert load_settings().host == ""


def test_relay_with_its_own_certificate_needs_no_ca(run: Run, tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    assert run(*BASIC, "--tls-cert", str(files.cert), "--tls-key", str(files.key)).code == 0
    settings = load_settings(environ={})
    assert (settings.tls_cert, settings.redirect_port) == (files.cert, 80)
    assert not settings.tls_self_signed


def test_files_for_systemd(run: Run, tmp_path: Path) -> None:
    args = ["--env-file", "etc/relay.env", "--secret-file", "etc/jwt-secret", "--data-dir", "state"]
    Path("etc").mkdir()
    assert run(*BASIC, *args).code == 0
    secret = Path("etc/jwt-secret").read_text()
    assert len(secret.strip()) >= 43
    assert "JWT_SECRET" not in Path("etc/relay.env").read_text()
    for name in ("relay.env", "jwt-secret"):
        assert stat.S_IMODE((tmp_path / "etc" / name).stat().st_mode) == 0o600
    assert LocalCa.load(tmp_path / "state") is not None
    assert run("init", *args).code == 0
    assert Path("etc/jwt-secret").read_text() == secret


def test_new_ca_is_made_on_request_only(run: Run, tmp_path: Path) -> None:
    run(*BASIC)
    first = (tmp_path / "data/local-ca/ca.crt").read_bytes()
    outcome = run("init", "--url", "https://other.example", "--yes")
    assert "Caution: the local CA was made for other names than other.example" in outcome.out
    assert (tmp_path / "data/local-ca/ca.crt").read_bytes() == first
    assert "Caution" not in run("init", "--new-ca").out
    second = LocalCa.load(tmp_path / "data")
    assert second is not None
    assert second.permits("other.example")


def test_backup_of_the_registry_has_no_key_of_the_ca(run: Run, tmp_path: Path) -> None:
    run(*BASIC)
    assert run("db", "backup", "copy.db").code == 0
    key = serialization.load_pem_private_key((tmp_path / "data/local-ca/ca.key").read_bytes(), None)
    raw = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    copy = (tmp_path / "copy.db").read_bytes()
    assert b"PRIVATE KEY" not in copy
    assert raw[-100:] not in copy


def test_certificate_of_an_earlier_version_gets_a_ca(run: Run, tmp_path: Path) -> None:
    run(*BASIC)
    for path in (tmp_path / "data" / "local-ca").iterdir():
        path.unlink()
    assert run("init").code == 0
    assert LocalCa.load(tmp_path / "data") is not None


class Answers:
    """A user at a terminal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answers: list[Any] = []
        monkeypatch.setattr(init, "is_terminal", lambda: True)
        monkeypatch.setattr(click, "prompt", self._ask)
        monkeypatch.setattr(click, "confirm", self._ask)

    def _ask(self, text: str, *, value_proc: Any = None, **more: Any) -> Any:
        self.asked.append(text)
        answer = self.answers.pop(0)
        if answer is KeyboardInterrupt:
            raise click.Abort
        if answer is False and more.get("abort"):
            raise click.Abort
        return value_proc(answer) if value_proc is not None else answer


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    return Answers(monkeypatch)


def test_user_is_asked_on_a_terminal(run: Run, answers: Answers) -> None:
    answers.answers = ["https://192.168.1.5", "Ada@example.com"]
    assert run("init").code == 0
    assert answers.asked == ["URL", "Your e-mail address, as administrator"]
    assert dotenv()["PUBLIC_URL"] == "https://192.168.1.5"
    answers.answers = [False]
    assert run("init", "--port", "8443").code == 0
    assert dotenv()["PORT"] == "443"
    answers.answers = [True, False]
    assert run("init", "--port", "8443", "--new-ca").code == 130
    assert "Replace the local CA?" in answers.asked[-1]
    assert dotenv()["PORT"] == "443"


def test_ctrl_c_at_a_question_leaves_nothing_behind(run: Run, answers: Answers) -> None:
    for given in ([KeyboardInterrupt], ["https://coffee.example", KeyboardInterrupt]):
        answers.answers = given
        assert run("init").code == 130
        assert everything() == {}


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the n-th rename of a file be interrupted."""
    left = [100]
    replace = Path.replace

    def interrupt(self: Path, target: Path) -> Path:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    return left


@pytest.mark.parametrize("number", range(5))
def test_ctrl_c_while_writing_leaves_no_half_file_and_a_second_run_completes_it(
    run: Run, interrupted: list[int], number: int, tmp_path: Path
) -> None:
    interrupted[0] = number
    assert run(*BASIC).code == 130
    assert not [path for path in everything() if path.endswith(".tmp")]
    secret = dotenv()["JWT_SECRET"] if number > 0 else None
    interrupted[0] = 100
    assert run(*BASIC).code == 0
    assert secret in (None, dotenv()["JWT_SECRET"])
    ssl.create_default_context().load_cert_chain(tmp_path / "data" / "tls-self-signed.pem")


def test_serve_offers_the_setup_on_a_terminal(
    run: Run, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = []
    monkeypatch.setattr("brewos_relay.server.run.run_server", lambda settings, **_: served.append(settings))
    answers.answers = [False]
    assert "JWT_SECRET is not set" in run("serve").err
    answers.answers = [True, "https://coffee.example", "ada@example.com"]
    assert run("serve", "--port", "4443").code == 0
    assert (served[0].port, served[0].public_url) == (4443, "https://coffee.example")
    assert run("serve").code == 0
    assert answers.answers == []


@needs_proc
def test_ctrl_c_of_a_process_leaves_no_half_file(tmp_path: Path) -> None:
    """With a real terminal, a real signal, and a real process."""
    controller, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "brewos_relay", "init"],
        cwd=tmp_path,
        env={name: text for name, text in environment().items() if name not in UNSET},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        shown = b""
        while b"URL [" not in shown:
            assert select.select([controller], [], [], 20)[0], shown
            shown += os.read(controller, 1024)
        # Python misses a signal that comes just before it waits. A second one could come while it ends.
        wait_until_asleep(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait(10)
        os.close(controller)
    assert list(tmp_path.iterdir()) == []


def test_port_problems_are_those_of_the_system() -> None:
    from brewos_relay.server.sockets import find_port_problem

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert find_port_problem("127.0.0.1", port) == errno.EADDRINUSE
        assert find_port_problem("", port) == errno.EADDRINUSE
    assert find_port_problem("127.0.0.1", port) is None
    assert find_port_problem("no.such.name.example", port) is None
