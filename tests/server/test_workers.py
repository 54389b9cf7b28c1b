"""`serve --workers`: real processes that share a port, and their parent."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from brewos_relay.settings.server_limits import ServerLimits
from support.certificates import client_context, write_certificate
from support.cluster import connect_device, online_app, serve_instance
from support.load import measured_delay, sleep_undelayed
from support.postgresql import PostgreSQL
from support.process import KEY, SECRET, Reach, environment, machine_id, run_command
from support.redis_server import RedisServer
from support.waiting import until
from support.wire_client import Ended, WireClient, text, upgrade_head
from support.workers import (
    METRICS_TOKEN,
    command_of,
    descendants,
    is_running,
    log_of,
    needs_proc,
    require_redis,
    serve_workers,
    workers_of,
)

pytestmark = needs_proc

HEALTH = b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n"
MACHINES = range(1, 31)
TOLD_S = 0.5
"""Much longer than it takes until every worker knows what the others have."""
SOON: dict[str, Any] = {"BREWOS_RELAY_CLOSE_S": 0.5, "BREWOS_RELAY_DEVICE_MIN_AGE_S": 0.01}


async def fingerprint(reach: Reach) -> str:
    connection = await reach.connect()
    stream = trio.SSLStream(connection.stream, client_context(), server_hostname="localhost")
    await stream.do_handshake()
    certificate = cast(Any, stream).getpeercert(binary_form=True)
    connection.abort()
    return hashlib.sha256(certificate).hexdigest()


async def test_killed_worker_is_replaced_and_the_peers_of_others_stay(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve_workers(tmp_path, machines=MACHINES, **SOON) as server:
            devices = [await server.device(machine_id(n)) for n in MACHINES]
            victim, other = server.workers()
            of_worker = {pid: [d for d in devices if server.worker_of(d) == pid] for pid in (victim, other)}
            assert min(map(len, of_worker.values())) >= 3, "both workers have devices"
            before = await server.metrics()
            assert before["brewos_relay_devices"] == len(devices)
            assert before['brewos_relay_attached_total{peer="device"}'] == len(devices)
            os.kill(victim, signal.SIGKILL)
            for device in of_worker[victim]:
                with pytest.raises(Ended):
                    await device.read_close()
            for device in of_worker[other]:
                await device.show_life()
            assert (await (await server.connect()).ask(HEALTH)).status == 200, "the other worker accepts"
            await until(lambda: len(set(server.workers()) - {victim}) == 2)
            await until(lambda: bool(log_of(tmp_path, "worker [12] is ready")))
            after = await server.metrics()
            assert after["brewos_relay_devices"] == len(of_worker[other])
            assert after['brewos_relay_attached_total{peer="device"}'] == len(devices), "counters never fall"
            assert after['brewos_relay_workers{state="running"}'] == 2
            assert sum(v for k, v in after.items() if k.startswith("brewos_relay_worker_starts")) == 3
            assert len(log_of(tmp_path, "worker [12] was ended by SIGKILL; starting it again in 1 s")) == 1
            assert log_of(tmp_path, '"worker": 1')
            assert log_of(tmp_path, '"worker": 2')
            server.send_signal(signal.SIGTERM)
            server.send_signal(signal.SIGINT)
            assert await server.wait(within_s=15) == 0


async def test_workers_are_drained_one_after_another(tmp_path: Path) -> None:
    drain_s = 3.0
    with trio.fail_after(60):
        async with serve_workers(tmp_path, machines=MACHINES, BREWOS_RELAY_DRAIN_S=drain_s, **SOON) as server:
            devices = [await server.device(machine_id(n)) for n in MACHINES]
            workers = {device: server.worker_of(device) for device in devices}
            closed_at: dict[WireClient, float] = {}

            async def read_close(device: WireClient) -> None:
                code, _ = await device.read_close()
                assert code == 1012
                closed_at[device] = trio.current_time()
                await device.aclose()

            began_at = trio.current_time()
            async with measured_delay() as delay, trio.open_nursery() as nursery:
                for device in devices:
                    nursery.start_soon(read_close, device)
                server.send_signal(signal.SIGTERM)
                # No worker takes new peers from now on.
                with suppress(OSError, Ended):
                    while (await (await server.connect()).ask(HEALTH)).status != 503:
                        pass
            times = {pid: [closed_at[d] for d in devices if workers[d] == pid] for pid in server.workers()}
            first, second = sorted(
                ([closed_at[d] for d in devices if workers[d] == pid] for pid in set(workers.values())),
                key=min,
            )
            assert max(first) <= min(second) + 0.3 + delay.since(began_at), times
            assert max(closed_at.values()) - began_at <= drain_s + 1 + delay.since(began_at)
            gaps = [
                b - a
                for a, b in zip(sorted(closed_at.values()), sorted(closed_at.values())[1:], strict=False)
            ]
            assert max(gaps) < drain_s / 4 + delay.since(began_at), "evenly"
            assert await server.wait(within_s=ServerLimits(drain_s=0.1).longest_drain_s) == 0


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "behind a proxy"])
async def test_device_and_its_clients_share_a_worker(tmp_path: Path, proxied: bool) -> None:
    machines = range(1, 13)
    given: dict[str, Any] = {"BREWOS_RELAY_LOG_LEVEL": "debug", **SOON}
    if proxied:
        given |= {"BREWOS_RELAY_TRUSTED_PROXIES": "127.0.0.1", "BREWOS_RELAY_PROXY_PROTOCOL": "true"}
    with trio.fail_after(60):
        async with serve_workers(tmp_path, machines=machines, **given) as server:

            async def connect(target: str, *requests: bytes) -> WireClient:
                connection = await server.connect()
                if proxied:
                    await connection.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
                for request in requests:
                    assert (await connection.ask(request)).status == 200
                assert (await connection.ask(upgrade_head(target))).status == 101
                return connection

            targets = {n: f"/ws/client?token={server.token()}&device={machine_id(n)}" for n in machines}
            apps = {n: [await connect(targets[n])] for n in machines}
            await sleep_undelayed(TOLD_S)
            devices = {n: await connect(f"/ws/device?id={machine_id(n)}&key={KEY}") for n in machines}
            for device in devices.values():
                await device.show_life()
            await sleep_undelayed(TOLD_S)
            for n in machines:
                apps[n] += [await connect(targets[n]), await connect(targets[n], HEALTH)]
            places = {n: server.worker_of(devices[n]) for n in machines}
            assert set(places.values()) == set(server.workers())
            for n in machines:
                assert [server.worker_of(app) for app in apps[n]] == 3 * [places[n]], n
                await devices[n].send(text({"type": "status", "n": n}))
                for app in apps[n]:
                    assert (await app.read_until("status"))["n"] == n
            found = await server.metrics() if not proxied else {}
            if not proxied:
                assert found['brewos_relay_handovers_total{outcome="passed"}'] >= 6
                assert found.get('brewos_relay_handovers_total{outcome="kept"}', 0) == 0
                # Each connection counts once, at the worker that has it.
                assert found['brewos_relay_handshakes_total{peer="client",status="101"}'] == 3 * len(machines)
                assert found['brewos_relay_handshakes_total{peer="device",status="101"}'] == len(machines)
                assert found["brewos_relay_clients"] == 3 * len(machines)
            admitted = log_of(tmp_path, "admitted a client")
            assert len(admitted) == 3 * len(machines)
            address = "192.0.2.7" if proxied else "127.0.0.1"
            assert all(f'"address": "{address}"' in line for line in admitted)
            server.send_signal(signal.SIGTERM)
            server.send_signal(signal.SIGINT)
            assert await server.wait(within_s=15) == 0


async def test_bus_joins_a_device_and_clients_of_different_workers(tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    # The state of a TLS connection cannot be passed to another process.
    tls: dict[str, Any] = {"BREWOS_RELAY_TLS_CERT": files.cert, "BREWOS_RELAY_TLS_KEY": files.key}
    with trio.fail_after(60):
        async with serve_workers(tmp_path, machines=(1,), **tls, **SOON) as server:

            async def connect(target: str) -> WireClient:
                connection = await server.connect(tls_context=client_context())
                assert (await connection.ask(upgrade_head(target))).status == 101
                return connection

            device = await connect(f"/ws/device?id={machine_id(1)}&key={KEY}")
            await device.show_life()
            target = f"/ws/client?token={server.token()}&device={machine_id(1)}"
            apps = [await connect(target) for _ in range(12)]
            for app in apps:
                while not (await app.read_json()).get("deviceOnline"):
                    pass
            await device.send(text({"type": "status", "n": 1}))
            for app in apps:
                assert (await app.read_until("status"))["n"] == 1
            apps[0].abort()
            server.send_signal(signal.SIGTERM)
            server.send_signal(signal.SIGINT)
            assert await server.wait(within_s=15) == 0


@pytest.mark.postgresql
async def test_workers_are_instances_among_others_on_a_bus_and_postgresql(
    tmp_path: Path, redis: RedisServer, postgresql: PostgreSQL
) -> None:
    with trio.fail_after(60), postgresql.new_database() as url:
        shared: dict[str, Any] = {"BREWOS_RELAY_BUS": redis.url, "BREWOS_RELAY_DATABASE_URL": url, **SOON}
        async with (
            serve_workers(tmp_path, machines=range(1, 5), **shared) as machine,
            serve_instance(tmp_path, redis.url, database_url=url) as another,
        ):
            devices = {n: await connect_device(machine, machine_id(n)) for n in range(1, 5)}
            await sleep_undelayed(TOLD_S)
            for n, device in devices.items():
                near, far = await machine.client(machine_id(n)), await online_app(another, machine_id(n))
                assert machine.worker_of(near) == machine.worker_of(device)
                await device.send(text({"type": "status", "n": n}))
                assert (await near.read_until("status"))["n"] == n
                assert (await far.read_until("status"))["n"] == n
            # A machine that moves to another instance leaves its worker.
            moved = await connect_device(another, machine_id(1))
            assert (await devices[1].read_close())[0] == 4002
            await moved.send(text({"type": "status", "n": 100}))
            assert (await online_app(machine, machine_id(1))).connected
            done = await run_command(tmp_path, "cluster", "status", "--json", **shared)
            instances = json.loads(done.stdout)["instances"]
            assert len(instances) == 3
            assert json.loads(done.stdout)["problems"] == []


async def test_all_workers_serve_a_new_certificate_after_sighup_and_systemd_is_told(tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    with (
        trio.fail_after(60),
        tempfile.TemporaryDirectory(prefix="notify-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
    ):
        systemd.bind(f"{folder}/notify")
        systemd.setblocking(False)
        given: dict[str, Any] = {
            "BREWOS_RELAY_TLS_CERT": files.cert,
            "BREWOS_RELAY_TLS_KEY": files.key,
            "NOTIFY_SOCKET": f"{folder}/notify",
            "WATCHDOG_USEC": 30_000_000,
        }
        async with serve_workers(tmp_path, **given) as server:
            before = await fingerprint(server)
            write_certificate(tmp_path)
            server.send_signal(signal.SIGHUP)
            with trio.fail_after(3):  # files are looked at every 5 s anyway
                while before in [await fingerprint(server) for _ in range(12)]:
                    pass
            server.send_signal(signal.SIGTERM)
            assert await server.wait(within_s=10) == 0
        told = []
        with suppress(BlockingIOError):
            while True:
                told.append(systemd.recv(4096).decode())
        assert "WATCHDOG=1" in told
        steps = [each for each in told if each != "WATCHDOG=1"]
        names = [each.partition("=")[0] for each in steps]
        assert names == ["READY", "RELOADING", "READY", "STOPPING"], "only the parent reports"
        assert f"STATUS=2 workers are ready on 127.0.0.1:{server.address[1]}" in steps[0]


async def test_workers_drain_when_their_parent_is_killed(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve_workers(tmp_path, machines=(1, 2), BREWOS_RELAY_DRAIN_S=0.2, **SOON) as server:
            devices = [await server.device(machine_id(n)) for n in (1, 2)]
            server.send_signal(signal.SIGKILL)
            for device in devices:
                assert (await device.read_close())[0] == 1012
            # `serve_workers` waits for the end of the workers.
        assert len(log_of(tmp_path, "the parent process has ended")) == 2


async def test_third_signal_ends_all_processes_at_once(tmp_path: Path) -> None:
    held: dict[str, Any] = {"BREWOS_RELAY_DRAIN_S": 30, "BREWOS_RELAY_DEVICE_MIN_AGE_S": 20}
    with trio.fail_after(60):
        async with serve_workers(tmp_path, machines=(1,), **held) as server:
            device = await server.device(machine_id(1))
            workers = server.workers()
            server.send_signal(signal.SIGTERM)
            await until(lambda: bool(log_of(tmp_path, "shutting down after SIGTERM")))
            server.send_signal(signal.SIGINT)
            await until(lambda: bool(log_of(tmp_path, "second signal")))
            server.send_signal(signal.SIGTERM)
            assert await server.wait(within_s=2) == -signal.SIGTERM
            with trio.fail_after(2):
                await until(lambda: not any(map(is_running, workers)))
            device.abort()


async def test_worker_that_gets_a_signal_drains_alone_and_is_replaced(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve_workers(tmp_path, machines=MACHINES, BREWOS_RELAY_DRAIN_S=1, **SOON) as server:
            devices = [await server.device(machine_id(n)) for n in MACHINES]
            leaving, other = server.workers()
            of_leaving = [device for device in devices if server.worker_of(device) == leaving]
            os.kill(leaving, signal.SIGTERM)
            for device in of_leaving:
                assert (await device.read_close())[0] == 1012
                await device.aclose()
                # It accepts no more: the other worker does.
                assert (await (await server.connect()).ask(HEALTH)).status == 200
            await until(lambda: len(set(server.workers()) - {leaving}) == 2)
            assert other in server.workers()
            assert log_of(tmp_path, "ended with exit code 0; starting it again in 1 s")
            server.send_signal(signal.SIGTERM)
            server.send_signal(signal.SIGINT)
            assert await server.wait(within_s=15) == 0


async def test_command_lines_have_no_secrets(tmp_path: Path) -> None:
    secret = "hunter2" * 3
    with trio.fail_after(60):
        async with serve_workers(
            tmp_path, BREWOS_RELAY_FACEBOOK_APP_SECRET=secret, BREWOS_RELAY_FACEBOOK_APP_ID=1
        ) as server:
            pids = [server.pid, *descendants(server.pid)]
            assert len(pids) >= 5, "the parent, two workers, Redis and its guard"
            lines = b"".join(command_of(pid) for pid in pids)
            assert b"serve\0--worker\0" in lines
            for hidden in (SECRET, secret, METRICS_TOKEN):
                assert hidden.encode() not in lines
            server.send_signal(signal.SIGTERM)
            assert await server.wait(within_s=15) == 0


async def test_start_ends_at_a_signal_and_leaves_no_process(tmp_path: Path) -> None:
    require_redis()
    with trio.fail_after(60):
        process = await trio.lowlevel.open_process(
            [
                sys.executable,
                "-m",
                "brewos_relay",
                "serve",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--workers",
                "2",
            ],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        await until(lambda: bool(workers_of(process.pid)))
        started = workers_of(process.pid)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert process.stdout is not None
        assert await process.stdout.receive_some() == b"", "it has not become ready"
        await process.stdout.aclose()
        assert not any(map(is_running, started))


async def test_port_in_use_is_reported_before_a_worker_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = await run_command(tmp_path, "serve", "--host", "127.0.0.1", "--port", port, "--workers", "2")
    assert done.returncode == 3
    assert f"port {port} on 127.0.0.1 cannot be used".encode() in done.stderr
    assert done.stdout == b""


async def test_workers_that_cannot_start_end_the_parent(tmp_path: Path) -> None:
    require_redis()
    port = ("--host", "127.0.0.1", "--port", "0")
    done = await run_command(
        tmp_path, "serve", *port, "--workers", "2", BREWOS_RELAY_DATABASE_URL="sqlite:////dev/null/at.db"
    )
    assert done.returncode == 3
    lines = done.stderr.decode().splitlines()
    assert sum("/dev/null" in line for line in lines) == 1, lines
    assert "worker 1 ended with exit code 3 before it was ready, and no other worker runs" in lines[-1]


@pytest.mark.parametrize("number", ["0", "65", "many"])
async def test_number_of_workers_has_limits(tmp_path: Path, number: str) -> None:
    assert (await run_command(tmp_path, "serve", "--workers", number)).returncode == 2
    done = await run_command(tmp_path, "serve", BREWOS_RELAY_WORKERS=number)
    assert done.returncode == 3
    assert b"a whole number from 1 to 64" in done.stderr


async def test_option_of_a_worker_is_for_the_parent_alone(tmp_path: Path) -> None:
    done = await run_command(tmp_path, "serve", "--worker", "0")
    assert done.returncode == 3
    assert b"--worker is for the processes that `serve --workers` starts itself" in done.stderr


async def test_one_worker_imports_nothing_of_the_others(tmp_path: Path) -> None:
    program = """
import sys
import brewos_relay.server.run
print([name for name in sys.modules if "worker" in name and name.startswith("brewos_relay")])
"""
    done = await trio.run_process(
        [sys.executable, "-c", program], env=environment(), cwd=tmp_path, capture_stdout=True
    )
    assert done.stdout == b"[]\n"
