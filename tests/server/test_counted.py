"""Request counts in the metrics of a server."""

from pathlib import Path

import trio
from prometheus_client.parser import text_string_to_metric_families

from brewos_relay.telemetry.metrics import PREFIX
from support.process import KEY, WRONG_KEY, HereServer, machine_id, serve_here
from support.wire_client import upgrade_head

MACHINE = machine_id(1)
TOKEN = "metrics-t0ken-for-nobody-else"
GET = "{} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer " + TOKEN + "\r\n\r\n"


async def ask(server: HereServer, request: bytes) -> int:
    return (await (await server.connect()).ask(request)).status


async def read_metrics(server: HereServer) -> dict[tuple[str, ...], float]:
    response = await (await server.connect()).ask(GET.format("GET /metrics").encode())
    assert response.status == 200
    return {
        (
            sample.name.removeprefix(PREFIX),
            *(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(response.body.decode())
        for sample in family.samples
    }


async def test_requests_and_refusals_are_in_the_metrics(tmp_path: Path) -> None:
    async with serve_here(tmp_path, settings={"metrics_token": TOKEN}) as server:
        with trio.fail_after(4):
            for path in ("/api/health", f"/api/health?key={KEY}", f"/{KEY}"):
                await ask(server, GET.format(f"GET {path}").encode())
            assert await ask(server, upgrade_head(f"/ws/device?id={MACHINE}&key={WRONG_KEY}")) == 401
            assert await ask(server, upgrade_head(f"/ws/device?id={MACHINE}")) == 400
            assert await ask(server, upgrade_head("/ws/elsewhere")) == 400
            assert await ask(server, upgrade_head(f"/ws/client?token=no&device={MACHINE}")) == 101
            assert await ask(server, b"GET / HTTP/3.0\r\n\r\n") == 400
            assert await ask(server, GET.format("GET /a\nb").encode()) == 400
            found = await read_metrics(server)
    assert found["http_requests_total", "GET", "/api/health", "200"] == 2
    assert found["http_request_seconds_count", "/api/health"] == 2
    assert found["http_requests_in_flight",] == 1, "the one that reads this"
    assert found["http_requests_total", "GET", "none", "404"] == 1
    refused = {key[1]: value for key, value in found.items() if key[0] == "refused_total"}
    assert refused == {"wrong_key": 1, "parameters": 1, "no_websocket_here": 1, "token": 1, "malformed": 2}
    assert not any(KEY in text for key in found for text in key)
