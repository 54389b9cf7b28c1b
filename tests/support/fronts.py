"""Servers to put before the relay: nginx, HAProxy and Caddy, each with its configuration from `deploy/`."""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

import pytest
import trio

from support.certificates import Files, client_context
from support.ports import free_port
from support.wire_client import WireClient

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
HOST: Final = "relay.example.org"
REQUIRED: Final = os.environ.get("BREWOS_RELAY_PROXY_TESTS") == "required"

_PLACES: Final = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
_STREAM_MODULES: Final = [
    Path(folder, "ngx_stream_module.so") for folder in ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules")
]


def need_program(name: str) -> str:
    """Find a program; without it, the test is skipped, or fails where it is required."""
    found = shutil.which(name, path=_PLACES)
    if found is None:
        lack(f"there is no {name} here")
    return found


def lack(what: str) -> NoReturn:
    """Skip the test that lacks something, or let it fail where it is required."""
    if REQUIRED:
        pytest.fail(f"{what}, and BREWOS_RELAY_PROXY_TESTS=required")
    pytest.skip(f"{what}; BREWOS_RELAY_PROXY_TESTS=required makes this a failure")


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """Replace texts. Each must occur."""
    for old, new in changes.items():
        assert old in text, f"the configuration has no {old!r}"
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Start:
    """The commands that start a proxy and reload its configuration."""

    arguments: list[str]
    reload: list[str] | signal.Signals
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """The values for a configuration. `seconds` replaces each of its 120 s."""

    folder: Path
    port: int
    relay_port: int
    files: Files
    seconds: int
    checks_often: bool = True
    """Whether HAProxy checks its server often enough to notice a drain during a test."""


def nginx(place: Place) -> Start:
    site = replaced(
        (DEPLOY / "nginx.conf").read_text(),
        {
            "    listen [::]:80;\n": "",
            "    listen [::]:443 ssl;\n": "",
            "listen 80;": f"listen 127.0.0.1:{free_port()};",
            "listen 443 ssl;": f"listen 127.0.0.1:{place.port} ssl;",
            "/etc/letsencrypt/live/relay.example.org/fullchain.pem": str(place.files.cert),
            "/etc/letsencrypt/live/relay.example.org/privkey.pem": str(place.files.key),
            "/var/log/nginx/": f"{place.folder}/",
            "127.0.0.1:3001": f"127.0.0.1:{place.relay_port}",
            "120s": f"{place.seconds}s",
        },
    )
    temporary = "".join(
        f"{kind}_temp_path {place.folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return _nginx(place, f"http {{\naccess_log off;\n{temporary}{site}\n}}\n")


def nginx_passthrough(place: Place) -> Start:
    stream = replaced(
        (DEPLOY / "nginx-passthrough.conf").read_text(),
        {
            "        listen [::]:443;\n": "",
            "listen 443;": f"listen 127.0.0.1:{place.port};",
            "127.0.0.1:3443": f"127.0.0.1:{place.relay_port}",
            "120s": f"{place.seconds}s",
        },
    )
    built_in = subprocess.run(
        [need_program("nginx"), "-V"], capture_output=True, text=True, check=True
    ).stderr
    if re.search(r"--with-stream(?!\S)", built_in):
        return _nginx(place, stream)
    module = next(filter(Path.exists, _STREAM_MODULES), None)
    if module is None:
        lack("this nginx has no stream module (libnginx-mod-stream)")
    return _nginx(place, stream, module=module)


def _nginx(place: Place, content: str, *, module: Path | None = None) -> Start:
    file = place.folder / "nginx.conf"
    load = f"load_module {module};\n" if module is not None else ""
    user = "user root;\n" if os.geteuid() == 0 else ""
    file.write_text(
        f"{load}{user}daemon off;\nworker_processes 2;\npid {place.folder}/nginx.pid;\n"
        f"error_log {place.folder}/nginx.log crit;\nevents {{}}\n{content}"
    )
    start = [
        need_program("nginx"),
        "-p",
        str(place.folder),
        "-c",
        str(file),
        "-e",
        f"{place.folder}/start.log",
    ]
    return Start(start, signal.SIGHUP)


def haproxy(place: Place) -> Start:
    pem = place.folder / "haproxy.pem"
    pem.write_bytes(place.files.cert.read_bytes() + place.files.key.read_bytes())
    return _haproxy(
        place,
        "haproxy.cfg",
        {
            "bind :::80 v4v6": f"bind 127.0.0.1:{free_port()}",
            "bind :::443 v4v6": f"bind 127.0.0.1:{place.port}",
            "/etc/haproxy/relay.example.org.pem": str(pem),
            "127.0.0.1:3001": f"127.0.0.1:{place.relay_port}",
        },
    )


def haproxy_passthrough(place: Place) -> Start:
    return _haproxy(
        place,
        "haproxy-passthrough.cfg",
        {
            "bind :::443 v4v6": f"bind 127.0.0.1:{place.port}",
            "127.0.0.1:3443": f"127.0.0.1:{place.relay_port}",
        },
    )


def haproxy_cluster(place: Place, relay_ports: Sequence[int], *, hashes: bool = True) -> Start:
    """HAProxy before several instances. Each response has the name of its server in `X-Served-By`.

    Without `hashes`, it distributes all connections evenly.
    """
    pem = place.folder / "relay.pem"
    pem.write_bytes(place.files.cert.read_bytes() + place.files.key.read_bytes())
    balance = "balance hash var(txn.machine)"
    chosen = balance if hashes else "balance roundrobin"
    return _haproxy(
        place,
        "cluster/haproxy.cfg",
        {
            "bind :::80 v4v6": f"bind 127.0.0.1:{free_port()}",
            "bind :::443 v4v6": f"bind 127.0.0.1:{place.port}",
            "bind 127.0.0.1:8404": f"bind 127.0.0.1:{free_port()}",
            "/etc/haproxy/relay.pem": str(pem),
            balance: f"http-response set-header X-Served-By %s\n    {chosen}",
            "inter 1s": "inter 100ms",
            **{f"relay{n}:3001": f"127.0.0.1:{port}" for n, port in enumerate(relay_ports, 1)},
        },
    )


def _haproxy(place: Place, name: str, changes: dict[str, str]) -> Start:
    text = (DEPLOY / name).read_text()
    if "log /dev/log" in text:
        changes |= {
            "log /dev/log local0": "log stdout format raw local0",
            "    user haproxy\n    group haproxy\n": "",
        }
    changes |= {
        "maxconn 20000": "maxconn 200",  # the limit of open files without privileges
        "120s": f"{place.seconds}s",
    }
    if place.checks_often and "inter 5s" in text:
        changes["inter 5s"] = "inter 250ms"
    file = place.folder / Path(name).name
    file.write_text(replaced(text, changes))
    return Start([need_program("haproxy"), "-W", "-f", str(file)], signal.SIGUSR2)


def caddy(place: Place) -> Start:
    program = need_program("caddy")
    admin = f"127.0.0.1:{free_port()}"
    text = replaced(
        (DEPLOY / "Caddyfile").read_text(),
        {
            "\tservers {": f"\tadmin {admin}\n\tauto_https disable_redirects\n\tservers {{",
            "{$PUBLIC_URL} {": f"{{$PUBLIC_URL}} {{\n\ttls {place.files.cert} {place.files.key}",
        },
    )
    if not caddy_is_gentle(program):
        text = text.replace("\t\tstream_close_delay 12h\n", "")
    file = place.folder / "Caddyfile"
    file.write_text(text)
    return Start(
        [program, "run", "--config", str(file), "--adapter", "caddyfile"],
        [program, "reload", "--force", "--config", str(file), "--adapter", "caddyfile", "--address", admin],
        {
            "PUBLIC_URL": f"https://{HOST}:{place.port}",
            "RELAY": f"127.0.0.1:{place.relay_port}",
            "HOME": str(place.folder),
            "XDG_DATA_HOME": str(place.folder / "share"),
            "XDG_CONFIG_HOME": str(place.folder / "config"),
        },
    )


def caddy_is_gentle(program: str) -> bool:
    """Tell whether a reload keeps connections open. Versions before 2.7 close them."""
    version = subprocess.run([program, "version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"v?(\d+)\.(\d+)", version)
    assert found, version
    return (int(found[1]), int(found[2])) >= (2, 7)


class ReverseProxy:
    """A running reverse proxy."""

    def __init__(self, start: Start, process: trio.Process, place: Place) -> None:
        self.address = ("127.0.0.1", place.port)
        self._start = start
        self._process = process
        self._folder = place.folder
        self._connections: list[TlsWireClient] = []

    async def connect(self, source: str = "127.0.0.2") -> "TlsWireClient":
        """Open a TLS connection to it, from an address of this computer."""
        connection = await TlsWireClient.connect_tls(self.address, source)
        self._connections.append(connection)
        return connection

    async def reload(self) -> None:
        if isinstance(self._start.reload, signal.Signals):
            self._process.send_signal(self._start.reload)
        else:
            await trio.run_process(self._start.reload, env={**os.environ, **self._start.environment})

    def logged(self) -> str:
        """Return everything that it logged."""
        return "".join(path.read_text(errors="replace") for path in self._folder.rglob("*.log"))

    def abort(self) -> None:
        for connection in self._connections:
            connection.abort()


@asynccontextmanager
async def open_front(start: Start, place: Place) -> AsyncIterator[ReverseProxy]:
    """Start a proxy and wait until it accepts connections. At the end, all of its processes have ended."""
    with (place.folder / "output.log").open("wb") as output:
        process = await trio.lowlevel.open_process(
            start.arguments,
            env={**os.environ, **start.environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    front = ReverseProxy(start, process, place)
    try:
        with trio.move_on_after(15) as patience:
            while process.poll() is None:
                with suppress(OSError):
                    await (await trio.open_tcp_stream(*front.address)).aclose()
                    break
                await trio.sleep(0.05)
        assert process.returncode is None, front.logged()
        assert not patience.cancelled_caught, front.logged()
        try:
            yield front
        finally:
            front.abort()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await process.wait()


class TlsWireClient(WireClient):
    """A client of exact bytes inside TLS; like a machine, it checks no certificate and names no protocol."""

    @classmethod
    async def connect_tls(cls, address: tuple[str, int], source: str) -> "TlsWireClient":
        sock = trio.socket.socket(socket.AF_INET)
        try:
            await sock.bind((source, 0))
            await sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        stream = trio.SSLStream(
            trio.SocketStream(sock), client_context(), server_hostname=HOST, https_compatible=True
        )
        connection = cls(stream)  # type: ignore[arg-type]
        try:
            await stream.do_handshake()
        except BaseException:
            connection.abort()
            raise
        return connection

    def abort(self) -> None:
        """Drop the connection without a close frame or a TLS close."""
        stream: trio.SSLStream[trio.SocketStream] = self.stream  # type: ignore[assignment]
        stream.transport_stream.socket.close()
