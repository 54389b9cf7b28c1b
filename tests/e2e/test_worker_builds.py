"""Which build the processes of `serve --workers` run."""

from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay.version import BUILD
from support.workers import needs_proc, serve_workers, templates_of

pytestmark = [
    needs_proc,
    pytest.mark.skipif(BUILD != "compiled", reason="there is one build only if nothing is compiled"),
]

OFF = "BREWOS_RELAY_COMPILED"


def build_of(pid: int) -> str:
    """Tell from the files that a process has loaded whether compiled modules are among them."""
    loaded = {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    is_compiled = any("/brewos_relay/" in file and file.endswith(".so") for file in loaded)
    return "compiled" if is_compiled else "interpreted"


@pytest.mark.parametrize("where", ["nowhere", "environment", ".env"])
async def test_variable_switches_compiled_modules_of_every_process_off(tmp_path: Path, where: str) -> None:
    if where == ".env":
        (tmp_path / ".env").write_text(f"{OFF}=0\n")
    build = "compiled" if where == "nowhere" else "interpreted"
    settings: dict[str, Any] = {OFF: "0"} if where == "environment" else {}
    with trio.fail_after(60):
        async with serve_workers(tmp_path, **settings) as server:
            workers, templates = server.workers(), templates_of(server.pid)
            assert (len(workers), len(templates)) == (2, 1)
            assert [build_of(pid) for pid in (server.pid, *templates, *workers)] == [build] * 4
            metrics = await server.metrics()
            (info,) = [name for name in metrics if name.startswith("brewos_relay_build_info")]
            assert f'build="{build}"' in info
