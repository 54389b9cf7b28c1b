"""Every script of the repository runs and ends with a documented exit code; figures are not checked."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cluster
from support.interop import need_node_modules, need_program
from support.redis_server import need_redis

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "tests", "docs", "examples")
CHILD_S = 100
MISSED = 1
"""The exit code of a benchmark that kept no limit: a run as short as these tells nothing about that."""

#: One short round of benchmarks/run.py on a machine that is busy with other tests.
SHORT = ("--runs", "1", "--secs", "0.2", "--no-pin", "--repeats", "0")

#: The scripts that run here: arguments for a short run, and the accepted exit codes.
RUN_HERE: dict[str, tuple[list[str], set[int]]] = {
    "benchmarks/run.py": (
        [*("--only", "fanout-1x100-w1", "--servers", "floor,relay"), *SHORT],
        {0, MISSED},
    ),
    "benchmarks/compare.py": (
        [*(sys.executable, sys.executable, "--only", "fanout-1x100-w1", "--pairs", "1"), *SHORT[2:]],
        {0, MISSED},
    ),
    "benchmarks/bus.py": (["--rounds", "1", "--messages", "80"], {0}),
    "benchmarks/tls.py": (["--rounds", "1", "--messages", "200", "--idle", "20"], {0, MISSED}),
    "benchmarks/frozen.py": (["--runs", "1", "--secs", "1"], {0, MISSED}),
    "benchmarks/soak.py": (["--minutes", "0.2", "--devices", "2", "--apps", "2"], {0, MISSED}),
    "tests/fuzz/run.py": (["--only", "frames,handshake,live", "--secs", "1"], {0}),
    "tests/storm/run.py": (
        ["--devices", "3", "--apps", "1", "--newcomers", "1", "--stops", "restart"],
        {0},
    ),
    "tests/storm/rolling.py": (["--help"], {0}),  # e2e/test_rolling_deployment.py does the same
    "docs/tables.py": (["--check"], {0}),
    "tests/conformance/run.py": (["--help"], {0}),  # the suite itself needs a Python 2.7
}
#: Scripts that other tests run: a part of the command, and the test.
RUN_BY = {
    "benchmarks/tls_load.py": "test_servers_of_the_comparison_start_and_serve_tls",
    "benchmarks/python-relays/on_picows.py": "test_servers_of_the_comparison_start_and_serve_tls",
    "benchmarks/python-relays/on_websockets.py": "test_servers_of_the_comparison_start_and_serve_tls",
    "benchmarks/python-relays/on_websockets_trio.py": "test_servers_of_the_comparison_start_and_serve_tls",
    "tests/fuzz/floods.py": "test_flood_of_valid_requests_is_run_by_its_own_tests",
    "tests/fuzz/outcomes.py": "test_builds_are_compared_by_their_own_tests",
    "tests/support/chart.py": "test_helm_chart_is_rendered_by_its_own_tests",
    "tests/conformance/echo_server.py": "test_echo_server_announces_its_port",
}


def _scripts() -> set[str]:
    marked = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)
    return {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if marked.search(path.read_text(encoding="utf-8")) and "build" not in path.parts
    }


def _run(script: str, arguments: list[str], *, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=CHILD_S,
        cwd=cwd,
        check=False,
    )


def test_every_script_is_run_by_a_test() -> None:
    examples = {name for name in _scripts() if name.startswith("examples/")}  # tests/test_examples.py
    assert _scripts() - examples == RUN_HERE.keys() | RUN_BY.keys()
    assert set(RUN_BY.values()) <= globals().keys()


@pytest.mark.parametrize("script", RUN_HERE)
def test_script_runs_to_its_end(script: str, tmp_path: Path) -> None:
    arguments, fine = RUN_HERE[script]
    if script == "benchmarks/bus.py":
        need_redis()
    if script == "benchmarks/run.py":
        arguments = [*arguments, "--chart", str(tmp_path / "bench.svg")]
    done = _run(script, arguments)
    assert done.returncode in fine, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_servers_of_the_comparison_start_and_serve_tls(tmp_path: Path) -> None:
    pytest.importorskip("picows")
    pytest.importorskip("uvloop")
    chart = str(tmp_path / "bench.svg")
    servers = "picows,websockets,websockets-trio"
    chosen = ["--only", "storm-tls-500x1", "--servers", servers, *SHORT]
    done = _run("benchmarks/run.py", [*chosen, "--chart", chart])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LEFT OUT" not in done.stderr


def test_node_relay_of_the_comparison_starts_and_serves_tls(tmp_path: Path) -> None:
    need_program("node")
    need_node_modules()  # skips the test if npm cannot install them
    chart = str(tmp_path / "bench.svg")
    chosen = ["--only", "storm-tls-500x1", "--servers", "node", *SHORT]
    done = _run("benchmarks/run.py", [*chosen, "--chart", chart])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LEFT OUT" not in done.stderr


def test_go_relay_of_the_comparison_starts_and_serves_tls(tmp_path: Path) -> None:
    need_program("go")
    if not Path("/usr/share/gocode/src/github.com/gorilla/websocket").exists():
        pytest.skip("the sources of gorilla/websocket are missing")
    chart = str(tmp_path / "bench.svg")
    chosen = ["--only", "storm-tls-500x1", "--servers", "go", *SHORT]
    done = _run("benchmarks/run.py", [*chosen, "--chart", chart])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LEFT OUT" not in done.stderr


@pytest.mark.parametrize("part", cluster.PARTS)
def test_figures_of_several_instances_are_measured(part: str, tmp_path: Path) -> None:
    chosen = ["--only", part, "--servers", "relay", "--devices", "30", *SHORT]
    done = _run("benchmarks/run.py", [*chosen, "--chart", str(tmp_path / "bench.svg")])
    assert done.returncode in {0, MISSED}, done.stdout + done.stderr
    assert "LEFT OUT" not in done.stderr
    assert "FAILED" not in done.stderr
    written = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert all(figure.title in written for figure in cluster.FIGURES if figure.part == part)


def test_flood_of_valid_requests_is_run_by_its_own_tests() -> None:
    """It floods from a process of its own, which tests/fuzz/test_floods.py starts."""
    assert "flood_server" in (ROOT / "tests/fuzz/test_floods.py").read_text(encoding="utf-8")


def test_builds_are_compared_by_their_own_tests() -> None:
    """The interpreted build runs in a process of its own, which `differences` starts."""
    assert "differences(" in (ROOT / "tests/fuzz/test_outcomes.py").read_text(encoding="utf-8")


def test_helm_chart_is_rendered_by_its_own_tests() -> None:
    """`render` starts the script, because Helm's packages are imported by a process of their own."""
    assert "render(" in (ROOT / "tests/deploy/test_chart.py").read_text(encoding="utf-8")


def test_echo_server_announces_its_port() -> None:
    command = [sys.executable, str(ROOT / "tests/conformance/echo_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            assert re.fullmatch(r"listening on 127\.0\.0\.1:[0-9]+\n", server.stdout.readline())
        finally:
            server.terminate()
            server.wait(CHILD_S)
