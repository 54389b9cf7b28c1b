"""Build the measured servers, and start one at a time."""

import base64
import hashlib
import hmac
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pinning import pinned_to
from ports import free_port
from processes import descendants
from workloads import FIRST_DEVICE

from brewos_relay.server.self_signed import ensure_self_signed

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
PROGRAMS = {"load": ("load.c", "connection.c", "messages.c", "figures.c"), "floor": ("floor.c",)}
START_TIMEOUT_S = 60.0
SETTLE_S = 0.3
"""Pause after a start, so that start-up work is not measured."""
STOP_TIMEOUT_S = 5.0
TOKEN_TTL_S = 86_400
DEBIANS_GO_LIBRARIES = "/usr/share/gocode"
RATES_OFF = {f"BREWOS_RELAY_{name}_RATE": "0" for name in ("CLIENT", "DEVICE", "ADMIT")}
"""Settings of brewos-relay without rate limits: the benchmark measures its capacity."""


class BenchError(Exception):
    """A requirement is missing or failed; the text names it and the remedy."""


class MissingError(BenchError):
    """One server cannot be measured here; the others can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that can be started on a port: its command (with `{port}` in it) and its surroundings."""

    name: str
    command: tuple[str, ...]
    token: str
    key: str
    environ: Mapping[str, str]
    cwd: Path
    tls_arguments: tuple[str, ...] | None = None
    """What its command needs besides to serve TLS; None if it cannot."""
    announces: str = ""
    """A text that it prints once it is ready, if its port listens before."""


def run_quietly(command: Sequence[str], **options: object) -> str:
    """Run a command to its end and return its output. Raises BenchError with its error output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    except OSError as error:
        raise BenchError(f"cannot run {shlex.join(command)}: {error}") from error
    if done.returncode:
        complaint = (done.stderr or done.stdout).strip()[-2000:]
        raise BenchError(f"{shlex.join(command[:6])} … failed with {done.returncode}:\n{complaint}")
    return str(done.stdout)


def build_programs() -> None:
    """Compile `load` and `floor` into benchmarks/build/ where they are older than their source."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise BenchError("there is no C compiler (cc), and the load generator is C: install gcc or clang")
    BUILD.mkdir(exist_ok=True)
    newest_header_s = max(header.stat().st_mtime for header in HERE.glob("*.h"))
    for name, files in PROGRAMS.items():
        sources, program = [HERE / file for file in files], BUILD / name
        changed_s = max(newest_header_s, *(source.stat().st_mtime for source in sources))
        if not program.exists() or program.stat().st_mtime < changed_s:
            run_quietly([compiler, "-std=gnu11", "-O2", "-Wall", "-o", str(program), *map(str, sources)])


class Fleet:
    """The devices, their key and the secret that all servers of one run share, in a temporary folder."""

    def __init__(self, *, folder: Path, devices: int) -> None:
        self.folder = folder
        self.secret = secrets.token_urlsafe(48)
        self.key = secrets.token_urlsafe(32)
        self.csv = folder / "devices.csv"
        lines = (f"BRW-{FIRST_DEVICE + i:08X},{self.key}\n" for i in range(devices))
        self.csv.write_text("".join(lines), encoding="ascii")
        self.pem = ensure_self_signed(folder, now=datetime.now(UTC))
        """A certificate and its key, for the servers that serve TLS."""

    def environ(self) -> dict[str, str]:
        """Return the environment for a server, without settings that would affect the measurement."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("BREWOS_RELAY_") and name not in {"PORT", "DATA_DIR", "WEB_DIST_PATH"}
        }
        if "PYTHONPATH" in kept:  # the servers run in another folder
            kept["PYTHONPATH"] = os.pathsep.join(
                str(Path(part).resolve()) for part in kept["PYTHONPATH"].split(os.pathsep)
            )
        return kept | {"JWT_SECRET": self.secret}

    def sign_token(self) -> str:
        """Return an HS256 JWT for all devices, for the servers that bring no command for it (RFC 7519)."""

        def encode(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

        now_s = int(time.time())
        claims = {"userId": "bench", "email": "bench@example.com", "iat": now_s, "exp": now_s + TOKEN_TTL_S}
        header = encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        body = encode(json.dumps(claims | {"devices": "*"}).encode())
        signature = hmac.digest(self.secret.encode(), f"{header}.{body}".encode(), hashlib.sha256)
        return f"{header}.{body}.{encode(signature)}"

    def server(
        self,
        name: str,
        command: Sequence[str],
        token: str,
        *,
        tls_arguments: tuple[str, ...] | None = None,
    ) -> Server:
        return Server(
            name=name,
            command=tuple(command),
            token=token,
            key=self.key,
            environ=self.environ(),
            cwd=self.folder,
            tls_arguments=tls_arguments,
        )


def prepare_floor(fleet: Fleet) -> Server:
    return fleet.server("floor", [str(BUILD / "floor"), "{port}"], "none")


def prepare_node(fleet: Fleet) -> Server:
    """Install `ws` for the Node relay below benchmarks/build/; raise MissingError where that cannot be."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        raise MissingError(f"{'npm' if node else 'node'} was not found: install Node.js 18 or newer")
    folder = BUILD / "node-relay"
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("package.json", "relay.mjs"):
        shutil.copyfile(HERE / "node-relay" / file, folder / file)
    if not (folder / "node_modules" / "ws").exists():
        try:
            run_quietly([npm, "install", "--no-audit", "--no-fund", "--no-package-lock"], cwd=folder)
        except BenchError as error:
            raise MissingError(f"npm could not install `ws`: {error}") from error
    command = [node, str(folder / "relay.mjs"), "{port}", str(fleet.csv)]
    return fleet.server("node", command, fleet.sign_token(), tls_arguments=(str(fleet.pem),))


def prepare_go(fleet: Fleet) -> Server:
    """Compile the Go relay; raise MissingError where Go or the sources of gorilla/websocket are missing."""
    go = shutil.which("go")
    if not go:
        raise MissingError("go was not found: install Go 1.18 or newer (Debian: golang-go)")
    program = BUILD / "go-relay"
    environ = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": os.pathsep.join(filter(None, (os.environ.get("GOPATH"), DEBIANS_GO_LIBRARIES))),
        "GOCACHE": str(BUILD / "go-cache"),
        "CGO_ENABLED": "0",
    }
    try:
        run_quietly([go, "build", "-o", str(program), str(HERE / "go-relay" / "relay.go")], env=environ)
    except BenchError as error:
        raise MissingError(
            f"install gorilla/websocket (Debian: golang-github-gorilla-websocket-dev): {error}"
        ) from error
    command = [str(program), "{port}", str(fleet.csv)]
    return fleet.server("go", command, fleet.sign_token(), tls_arguments=(str(fleet.pem),))


def prepare_python_relay(fleet: Fleet, name: str) -> Server:
    """Look whether this Python has what a relay of python-relays/ is made of; raise MissingError if not."""
    script = HERE / "python-relays" / f"on_{name.replace('-', '_')}.py"
    try:
        run_quietly([sys.executable, str(script), "--help"], env=fleet.environ())
    except BenchError as error:
        raise MissingError(f"it needs `pip install --group bench`: {str(error)[-300:]}") from error
    command = [sys.executable, str(script), "{port}", str(fleet.csv)]
    return fleet.server(name, command, fleet.sign_token(), tls_arguments=("--pem", str(fleet.pem)))


def prepare_relay(fleet: Fleet, *, command: str | None, name: str = "relay") -> Server:
    """Register the fleet with brewos-relay, as "relay" interpreted or as "compiled".

    Raise MissingError where it is not installed, or not compiled.
    """
    relay = shlex.split(command) if command else [sys.executable, "-m", "brewos_relay"]
    environ = fleet.environ() | {"BREWOS_RELAY_COMPILED": "1" if name == "compiled" else "0"}
    try:
        version = run_quietly([*relay, "--version"], env=environ, cwd=fleet.folder)
    except BenchError as error:
        raise MissingError(f"brewos-relay does not run here (python3 -m pip install .): {error}") from error
    if name == "compiled" and "(compiled)" not in version:
        raise MissingError(
            f"{relay[0]} has no compiled build: BREWOS_RELAY_BUILD_TESTS=compiled nox -s bench installs it"
        )
    return register_fleet(fleet, relay, name, environ)


def register_fleet(fleet: Fleet, relay: Sequence[str], name: str, environ: Mapping[str, str]) -> Server:
    """Register the fleet with an installation of brewos-relay, in a data directory of its own."""
    cwd, data_dir = fleet.folder, fleet.folder / f"data-{name}"
    run_quietly(
        [*relay, "device", "import", str(fleet.csv)], env={**environ, "DATA_DIR": str(data_dir)}, cwd=cwd
    )
    token = run_quietly(
        [*relay, "token", "--user", "bench", "--email", "bench@example.com", "--all-devices"],
        env=environ,
        cwd=cwd,
    ).strip()
    serve = ["serve", "--host", "127.0.0.1", "--port", "{port}", "--data-dir", str(data_dir)]
    tls_arguments = ("--tls-cert", str(fleet.pem), "--tls-key", str(fleet.pem))
    server = fleet.server(name, [*relay, *serve], token, tls_arguments=tls_arguments)
    return replace(server, environ={**environ, **RATES_OFF})


def _listens(pid: int, port: int) -> bool:
    """Say whether this very process holds the listening socket (/proc/net/tcp, state 0A)."""
    inodes = set()
    for family in ("tcp", "tcp6"):
        table = Path("/proc/net", family)
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == "0A" and fields[1].endswith(f":{port:04X}"):
                inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return False
    try:
        return any(str(file.readlink()) in inodes for file in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # a descriptor, or the process, went away meanwhile: the next look will tell
        return False


def _await_start(process: subprocess.Popen[bytes], port: int, log: Path, server: Server) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not (_listens(process.pid, port) and server.announces in log.read_text()):
        if process.poll() is not None:
            raise BenchError(f"{server.name} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        if time.monotonic() > deadline_s:
            raise BenchError(
                f"{server.name}: process {process.pid} did not listen on port {port} "
                f"within {START_TIMEOUT_S:.0f} s; if its command starts the server as another process, "
                "give one that becomes the server"
            )
        time.sleep(0.05)
    time.sleep(SETTLE_S)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it started."""
    started = descendants(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the server leads a group
    process.wait()
    for each in started:
        each.kill()


@contextmanager
def running(server: Server, *, tls: bool = False, cpu: int | None = None) -> Iterator[tuple[int, int]]:
    """Run a fresh process of the server, pinned to a processor; give its port and the id of the process."""
    port = free_port()
    log = BUILD / f"{server.name}.log"
    command = [part.replace("{port}", str(port)) for part in server.command]
    if tls:
        assert server.tls_arguments is not None
        command += server.tls_arguments
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=server.environ,
            cwd=server.cwd,
            start_new_session=True,
            preexec_fn=pinned_to(cpu),
        )
        try:
            _await_start(process, port, log, server)
            yield port, process.pid
        finally:
            _stop(process)
