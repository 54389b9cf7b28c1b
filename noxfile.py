"""The checks of this project: `nox` runs all of them, `nox -l` lists further sessions."""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False  # also in CI: use the versions that are installed
nox.options.sessions = ["lint", "types", "imports", "docs", "coverage", "compiled", "tests"]
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")
# The tests start hundreds of processes. Each would take a second longer if it had to compile what it imports.
os.environ.setdefault("UV_COMPILE_BYTECODE", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

#: The build that all sessions but `compiled` and `wheels` install, and that the tests insist on.
BUILD = os.environ.setdefault("BREWOS_RELAY_BUILD_TESTS", "interpreted")
COMPILED = {"BREWOS_RELAY_BUILD_TESTS": "compiled", "HATCH_BUILD_HOOK_ENABLE_CUSTOM": "true"}
if BUILD == "compiled":
    os.environ.update(COMPILED)

SUPPORTED = ["3.11", "3.12", "3.13"]
AT_HAND = f"{sys.version_info[0]}.{sys.version_info[1]}"
PYTHONS = SUPPORTED if AT_HAND in SUPPORTED else [*SUPPORTED, AT_HAND]

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
FULLY_COVERED = ("core", "wire", "auth")
FULLY_COVERED_MODULES = (
    "networks.py",
    "texts.py",
    "vocabulary.py",
    "cluster/broker_clock.py",
    "cluster/devices.py",
    "cluster/envelopes.py",
    "cluster/mail_handler.py",
    "cluster/member.py",
    "cluster/ownership.py",
    "cluster/remote_clients.py",
    "cluster/remote_commands.py",
    "cluster/remote_device.py",
    "cluster/requests.py",
    "cluster/view.py",
)
#: The tests that also run on the compiled build.
DATA_PATH = (
    "tests/test_compiled.py",
    "tests/wire",
    "tests/core",
    "tests/contract",
    "tests/e2e",
    "tests/fuzz/test_outcomes.py",
    "tests/fuzz/test_targets.py::test_a_quick_run_finds_nothing",
    "tests/fuzz/test_live.py::test_a_server_survives_fuzzing_while_other_peers_communicate",
)
#: The version of Python for the compiled build: one between the others, if there is one here, as that build
#: runs most of the tests that depend on the version.
COMPILED_PYTHON = next((each for each in SUPPORTED[1:-1] if shutil.which(f"python{each}")), AT_HAND)
#: Packages whose tests need no other program and no other WebSocket implementation.
ALONE = ("api", "auth", "commands", "core", "registry", "server", "settings", "telemetry", "wire")
#: Those of them that use more of Python itself and are not tested compiled, for versions between the others.
IN_BETWEEN = ("auth", "settings", "telemetry")
#: Tests of browsers, other programs, load generators, SQL, Redis and documentation. They do not depend on the
#: version of Python, so they run on one version only, like the tests that are marked `postgresql`.
TRIED_ONCE = (
    "tests/benchmarks",
    "tests/cluster/test_broker_contract.py",
    "tests/cluster/test_broker_model.py",
    "tests/cluster/test_invariants.py",
    "tests/cluster/test_redis_broker.py",
    "tests/console",
    "tests/deploy",
    "tests/e2e/test_accessibility.py",
    "tests/e2e/test_app_push.py",
    "tests/e2e/test_balancer.py",
    "tests/e2e/test_bus_failures.py",
    "tests/e2e/test_console.py",
    "tests/e2e/test_first_hour.py",
    "tests/e2e/test_front_proxies.py",
    "tests/e2e/test_instance_failures.py",
    "tests/e2e/test_installed_console.py",
    "tests/e2e/test_instances.py",
    "tests/e2e/test_interop.py",
    "tests/e2e/test_pages.py",
    "tests/e2e/test_partitions.py",
    "tests/e2e/test_rolling_deployment.py",
    "tests/e2e/test_shots.py",
    "tests/e2e/test_takeovers.py",
    "tests/e2e/test_takeovers_in_flight.py",
    "tests/e2e/test_tutorial.py",
    "tests/fuzz",
    "tests/registry/test_takeovers.py",
    "tests/registry/test_transfer.py",
    "tests/server/test_workers.py",
    "tests/storm",
    "tests/test_doc_snippets.py",
    "tests/test_docs.py",
)

#: Tests of one server that also run with two instances on a bus: machines connect to one, apps to the other.
#: All other tests have no message that crosses, or choose their instances themselves.
ACROSS = (
    "tests/contract/test_app_basics.py",
    "tests/contract/test_device_basics.py",
    "tests/contract/test_device_frames.py",
    "tests/contract/test_sdk_app.py",
    "tests/e2e/test_hostile_messages.py",
    "tests/e2e/test_takeovers_in_flight.py",
)

#: Many tests wait for processes and timeouts: with three workers, two processors were idle for a third of the
#: time. A worker without tests takes some from another.
SIDE_BY_SIDE = ("-n", str(max(2, (os.cpu_count() or 2) * 2)), "--dist", "worksteal")


def install(session: nox.Session, *groups: str, project: bool = True) -> None:
    """Install dependency groups, and the project as its users install it."""
    wanted = [
        requirement for group in groups for requirement in nox.project.dependency_groups(PROJECT, group)
    ]
    session.install(*wanted, *(["."] if project else []))


@nox.session(python=AT_HAND)
def lint(session: nox.Session) -> None:
    """Check format and style, and the compose files against their schema."""
    install(session, "lint", project=False)
    compose_files = ("deploy/compose.yaml", "deploy/cluster/compose.yaml")
    session.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *compose_files)
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session(python=AT_HAND)
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    install(session, "types")
    session.run("mypy")


@nox.session(python=AT_HAND)
def imports(session: nox.Session) -> None:
    """Check that the layers import downwards only."""
    install(session, "imports")
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": "src"})


@nox.session(python=AT_HAND)
def docs(session: nox.Session) -> None:
    """Build the documentation as a site in docs/_build/html; warnings are errors."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "-n", "-E", "-q", "--keep-going", "docs", "docs/_build/html")
    session.run("towncrier", "build", "--draft", "--version", "next")


@nox.session(python=AT_HAND)
def tables(session: nox.Session) -> None:
    """Write the parts of the documentation that are generated from the code."""
    install(session)
    session.run("python", "docs/tables.py", *session.posargs)


@nox.session(python=AT_HAND)
def screenshots(session: nox.Session) -> None:
    """Take the screenshots of the documentation again, in Chromium; arguments go to pytest."""
    install(session, "tests")
    wanted = (
        "tests/e2e/test_first_hour.py::test_from_the_installation_to_two_compared_shots",
        "tests/e2e/test_console.py::test_pictures_for_the_docs",
    )
    session.run(
        "pytest",
        "-q",
        *(session.posargs or wanted),
        env={"BREWOS_RELAY_SCREENSHOTS": str(ROOT / "docs/images")},
    )


@nox.session(python=AT_HAND)
def coverage(session: nox.Session) -> None:
    """Check that each fully covered module has every branch covered by its own test file."""
    install(session, "tests")
    folder = session.create_tmp()

    def falls_short(name: str) -> bool:
        """Run a module's own tests; return whether they miss a branch of it."""
        own_tests = ROOT / "tests" / Path(name).parent / f"test_{Path(name).name}"
        data = f"--data-file={folder}/coverage-{name.replace('/', '-')}"
        pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(own_tests))
        session.run("coverage", "run", data, *pytest, silent=True)
        try:
            session.run("coverage", "report", data, "--fail-under=100", f"--include=*/{name}", silent=True)
        except nox.command.CommandFailed:
            return True
        return False

    package_folder = ROOT / "src" / "brewos_relay"
    modules = [
        *FULLY_COVERED_MODULES,
        *(
            str(path.relative_to(package_folder))
            for package in FULLY_COVERED
            for path in sorted((package_folder / package).glob("[!_]*.py"))
        ),
    ]
    with ThreadPoolExecutor(os.cpu_count()) as at_once:
        short = [
            name for name, falls in zip(modules, at_once.map(falls_short, modules), strict=True) if falls
        ]
    if short:
        session.error(f"not fully covered by their own tests: {', '.join(short)}")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after -- go to pytest.

    The current version of Python runs all of them, and some of them again with machines and apps on different
    instances. The newest runs those that depend on the version, and those in between run fewer.
    """
    tries_all = session.python == AT_HAND
    install(session, "tests", *(["fronts", "bench"] if tries_all else []))
    chosen = [] if tries_all else [*(f"--ignore={path}" for path in TRIED_ONCE), "-m", "not postgresql"]
    if not tries_all and not session.posargs:
        parts = IN_BETWEEN if session.python in SUPPORTED[1:-1] else (*ALONE, "client")
        chosen += [f"tests/{part}" for part in parts]
    session.run("pytest", "-q", *SIDE_BY_SIDE, *chosen, *session.posargs)
    if tries_all and not session.posargs:
        session.run("pytest", "-q", *SIDE_BY_SIDE, *ACROSS, env={"BREWOS_RELAY_TESTS_ACROSS": "1"})


@nox.session(python=COMPILED_PYTHON)
def compiled(session: nox.Session) -> None:
    """Run the tests of the data path on the compiled build; arguments after -- go to pytest."""
    session.env.update(COMPILED)
    install(session, "tests")
    ignored = [path for path in TRIED_ONCE if not any(chosen.startswith(path) for chosen in DATA_PATH)]
    chosen = session.posargs or [*DATA_PATH, *(f"--ignore={path}" for path in ignored)]
    session.run("pytest", "-q", *SIDE_BY_SIDE, *chosen)


@nox.session(python=PYTHONS)
def wheels(session: nox.Session) -> None:
    """Build compiled wheels in `dist`, and check that each can be installed and used."""
    session.install("build[uv]")
    (ROOT / "dist").mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--wheel", "--installer=uv", f"--outdir={folder}", env=COMPILED)
        (wheel,) = Path(folder).glob("*.whl")
        session.install("--reinstall", str(wheel))
        session.chdir(folder)  # away from the source
        session.run("python", "-c", "from brewos_relay import version; assert version.BUILD == 'compiled'")
        session.run("brewos-relay", "--version")
        shutil.copy(wheel, ROOT / "dist")


@nox.session(python=SUPPORTED[0], venv_backend="uv")
def minimums(session: nox.Session) -> None:
    """Run the tests of each package on the oldest supported dependencies; arguments go to pytest."""
    install(session, "tests", project=False)
    # After the dependencies of the tests, which include a newer websockets for its server.
    session.install("--resolution=lowest-direct", "--upgrade", ".")
    parts = session.posargs or [f"tests/{part}" for part in ALONE]
    session.run("pytest", "-q", *SIDE_BY_SIDE, *parts)


@nox.session(python=AT_HAND)
def bench(session: nox.Session) -> None:
    """Benchmark the relay beside the floor and other relays; arguments after -- go to benchmarks/run.py."""
    session.install(".[redis]")
    # The benchmark leaves out relays that cannot be installed here, and reports it.
    session.install(*nox.project.dependency_groups(PROJECT, "bench"), success_codes=[0, 1, 2])
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session(python=AT_HAND)
def soak(session: nox.Session) -> None:
    """Connect and disconnect peers for an hour, and check that memory is flat; arguments go to the script."""
    install(session)
    session.run("python", "benchmarks/soak.py", "--minutes", "60", *session.posargs)


@nox.session(python=AT_HAND)
def storm(session: nox.Session) -> None:
    """Kill a server under 2,000 machines, restart it, and check their return; arguments go to the script."""
    install(session, "tests")
    session.run("python", "tests/storm/run.py", *session.posargs)


@nox.session(python=AT_HAND)
def rolling(session: nox.Session) -> None:
    """Replace three instances under 500 machines, which must keep their keys; arguments go to the script."""
    install(session, "tests")
    session.run("python", "tests/storm/rolling.py", *session.posargs)


@nox.session(python=AT_HAND)
def fuzz(session: nox.Session) -> None:
    """Send malformed frames, messages and HTTP requests; arguments go to the script."""
    install(session, "fuzz", "tests")
    session.run("python", "tests/fuzz/run.py", *session.posargs)


@nox.session(python=AT_HAND)
def conformance(session: nox.Session) -> None:
    """Run the Autobahn suite against the codec, if a Python 2.7 is installed."""
    session.install(".")
    session.run("python", "tests/conformance/run.py", *session.posargs)
