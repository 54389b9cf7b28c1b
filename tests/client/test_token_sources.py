"""Tests of client.token_sources."""

import os
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from brewos_relay.client import token_sources as tokens_module
from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.client.key_store import KeyStoreError, write_private
from brewos_relay.client.token_sources import (
    SessionFile,
    SignInEnded,
    StaticToken,
    TokenFunction,
    token_source,
)
from brewos_relay.client.websocket import RelayRefused

URL = "https://relay.example"


class Relay:
    """A server that returns `answers` one after the other, and repeats the last one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: list[dict[str, Any] | Exception] = []
        monkeypatch.setattr(tokens_module, "post_json", self.post)

    async def post(self, url: str, path: str, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        assert url == URL
        self.asked.append((path, body))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Relay:
    return Relay(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "session.json"


def session(number: int, *, ends_in_s: float = 3600) -> dict[str, Any]:
    return {
        "accessToken": f"access {number}",
        "refreshToken": f"refresh {number}",
        "expiresAt": int((time.time() + ends_in_s) * 1000),
        "user": {"id": "x"},
    }


def keep(path: Path, content: dict[str, Any]) -> None:
    write_private(path, msgspec.json.encode(content))


def kept(path: Path) -> Any:
    return msgspec.json.decode(path.read_bytes())


async def test_token_is_a_text_or_a_function(path: Path) -> None:
    async def function() -> str:
        return "called"

    given = token_source("given")
    assert isinstance(given, StaticToken)
    assert (await given.token(), await given.fresh()) == ("given", "given")
    called = token_source(function)
    assert isinstance(called, TokenFunction)
    assert (await called.token(), await called.fresh()) == ("called", "called")
    tokens = SessionFile(URL, path)
    assert token_source(tokens) is tokens


async def test_valid_token_is_not_exchanged(relay: Relay, path: Path) -> None:
    keep(path, session(1, ends_in_s=130))
    tokens = SessionFile(URL, str(path))
    assert [await tokens.token(), await tokens.token()] == ["access 1", "access 1"]
    assert relay.asked == []
    assert "refresh 1" not in repr(tokens)


async def test_expiring_token_is_exchanged_and_stored(relay: Relay, path: Path) -> None:
    keep(path, session(1, ends_in_s=110))
    relay.answers = [session(2)]
    tokens = SessionFile(URL, path)
    assert [await tokens.token(), await tokens.token()] == ["access 2", "access 2"]
    assert relay.asked == [("/api/auth/refresh", {"refreshToken": "refresh 1"})]
    assert kept(path)["refreshToken"] == "refresh 2"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116
    assert await SessionFile(URL, path).token() == "access 2"


async def test_fresh_always_exchanges(relay: Relay, path: Path) -> None:
    keep(path, session(1))
    relay.answers = [session(2), session(3)]
    tokens = SessionFile(URL, path)
    assert [await tokens.fresh(), await tokens.fresh(), await tokens.token()] == [
        *("access 2", "access 3"),
        "access 3",
    ]
    assert [body["refreshToken"] for _, body in relay.asked] == ["refresh 1", "refresh 2"]


async def test_concurrent_requests_share_one_exchange(relay: Relay, path: Path) -> None:
    keep(path, session(1, ends_in_s=0))
    relay.answers = [session(2)]
    tokens = SessionFile(URL, path)
    got: list[str] = []

    async def ask() -> None:
        got.append(await tokens.token())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert got == ["access 2"] * 3


async def test_sign_in_creates_the_file(relay: Relay, path: Path) -> None:
    relay.answers = [session(1)]
    tokens = SessionFile(URL, path)
    with pytest.raises(SignInEnded, match=r"there is no session in .*; sign in first"):
        await tokens.token()
    await tokens.sign_in("/api/auth/password", email="bot@example.org", password="a good one")
    assert relay.asked == [("/api/auth/password", {"email": "bot@example.org", "password": "a good one"})]
    assert await tokens.token() == "access 1"
    assert set(kept(path)) == {"accessToken", "refreshToken", "expiresAt"}


@pytest.mark.parametrize("status", [401, 403])
async def test_ended_session_raises(relay: Relay, path: Path, status: int) -> None:
    keep(path, session(1))
    relay.answers = [RelayRefused(status, "The session has ended")]
    with pytest.raises(SignInEnded, match="sign in again"):
        await SessionFile(URL, path).fresh()


@pytest.mark.parametrize("error", [RelayRefused(503, retry_after_s=5), RelayUnreachable("not there")])
async def test_temporary_error_is_raised_unchanged(relay: Relay, path: Path, error: Exception) -> None:
    keep(path, session(1))
    relay.answers = [error, session(2)]
    tokens = SessionFile(URL, path)
    with pytest.raises(type(error)):
        await tokens.fresh()
    assert await tokens.fresh() == "access 2"
    assert relay.asked[0] == relay.asked[1]


@pytest.mark.parametrize("answer", [{}, {"accessToken": 5}])
async def test_answer_without_tokens_raises(relay: Relay, path: Path, answer: dict[str, Any]) -> None:
    relay.answers = [answer]
    with pytest.raises(RelayUnreachable, match="returned no tokens"):
        await SessionFile(URL, path).sign_in("/api/auth/invite", token="x")


async def test_invalid_session_file_raises(path: Path) -> None:
    write_private(path, b"nonsense")
    with pytest.raises(KeyStoreError, match="is not a session file"):
        await SessionFile(URL, path).token()


async def test_exchange_is_not_cancelled_halfway(relay: Relay, path: Path) -> None:
    keep(path, session(1))
    relay.answers = [session(2)]
    with trio.CancelScope() as scope:
        scope.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            tokens = SessionFile(URL, path)
            await tokens._load()
        await tokens._exchange("/api/auth/refresh", {"refreshToken": "refresh 1"})
    assert kept(path)["refreshToken"] == "refresh 2"


def full_disk(*_: Any) -> None:
    raise KeyStoreError("the disk is full")


async def test_full_disk_does_not_stop_a_running_app(
    relay: Relay, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep(path, session(1))
    relay.answers = [session(2), session(3)]
    tokens = SessionFile(URL, path)
    with monkeypatch.context() as patch:
        patch.setattr(tokens_module, "write_private", full_disk)
        assert await tokens.fresh() == "access 2"
    assert "is lost after a restart" in caplog.text
    assert kept(path)["refreshToken"] == "refresh 1"
    assert await tokens.fresh() == "access 3"
    assert relay.asked[1][1] == {"refreshToken": "refresh 2"}
    assert kept(path)["refreshToken"] == "refresh 3"


async def test_full_disk_fails_a_sign_in(relay: Relay, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relay.answers = [session(1)]
    monkeypatch.setattr(tokens_module, "write_private", full_disk)
    with pytest.raises(KeyStoreError, match="full"):
        await SessionFile(URL, path).sign_in("/api/auth/invite", token="x")


async def test_invalid_file_raises_before_an_exchange(relay: Relay, path: Path) -> None:
    keep(path, session(1))
    relay.answers = [KeyStoreError("nothing was exchanged")]
    with pytest.raises(KeyStoreError, match="nothing was exchanged"):
        await SessionFile(URL, path).fresh()
