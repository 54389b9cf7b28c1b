"""Tests of client.endpoint."""

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from brewos_relay.client.endpoint import Endpoint, RelayUnreachable, check_device_id, open_stream, parse_url
from brewos_relay.errors import SettingsError
from support.certificates import server_context, write_certificate


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://relay.example", Endpoint("relay.example", 80, tls=False)),
        ("ws://relay.example:3001/", Endpoint("relay.example", 3001, tls=False)),
        ("https://relay.example", Endpoint("relay.example", 443, tls=True)),
        (" wss://relay.example:8443 ", Endpoint("relay.example", 8443, tls=True)),
        ("http://[::1]:3001", Endpoint("::1", 3001, tls=False)),
    ],
)
def test_parses_all_url_forms(url: str, endpoint: Endpoint) -> None:
    assert parse_url(url) == endpoint


async def test_root_dot_is_removed_for_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_certificate(tmp_path, names=["relay.example"])
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    here = listeners[0].socket.getsockname()
    connect = trio.open_tcp_stream
    monkeypatch.setattr(trio, "open_tcp_stream", lambda _host, _port: connect(*here))

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await trio.SSLStream(stream, server_context(files), server_side=True).do_handshake()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            context = ssl.create_default_context(cafile=files.cert)
            for name in ("relay.example", "relay.example."):
                stream = await open_stream(Endpoint(name, 443, tls=True), name, context)
                await trio.aclose_forcefully(stream)
            with pytest.raises(RelayUnreachable):
                await open_stream(Endpoint("other.example.", 443, tls=True), "other", context)
            nursery.cancel_scope.cancel()


def test_host_header_always_has_the_port() -> None:
    assert Endpoint("relay.example", 443, tls=True).host_header == "relay.example:443"
    assert Endpoint("::1", 80, tls=False).host_header == "[::1]:80"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "relay.example:3001",
        "ftp://relay.example",
        "http://",
        "http://relay.example:port",
        "http://relay.example:99999",
        "http://[::1",
        "http://relay.example/some/where",
        "http://relay.example?token=s3cr3t",
        "http://user:s3cr3t@relay.example",
    ],
)
def test_other_urls_are_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(SettingsError, match="URL of the relay") as caught:
        parse_url(url)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        ("localhost", True),
        ("localhost.", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("192.168.1.2", False),
        ("relay.example", False),
    ],
)
def test_loopback_is_this_computer(host: str, is_here: bool) -> None:
    assert Endpoint(host, 80, tls=False).is_here is is_here


def test_device_id_is_converted_to_upper_case() -> None:
    assert check_device_id("brw-12ab34cd") == "BRW-12AB34CD"


@pytest.mark.parametrize(
    "text", ["", "BRW-1", "BRW-12AB34CG", "BRW-12AB34CD ", "BRW-12AB34CD0", "BRW-\u0661234567"]
)
def test_malformed_device_id_is_a_settings_error(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a device id"):
        check_device_id(text)
