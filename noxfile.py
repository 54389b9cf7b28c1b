"""What can be run on this project: `nox` checks everything, `nox -l` lists the rest."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False  # also in CI: test on what is there
nox.options.sessions = ["lint", "types", "imports", "docs", "coverage", "tests"]
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")

SUPPORTED = ["3.11", "3.12", "3.13"]
AT_HAND = f"{sys.version_info[0]}.{sys.version_info[1]}"
PYTHONS = SUPPORTED if AT_HAND in SUPPORTED else [*SUPPORTED, AT_HAND]

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
FULLY_COVERED = ("core", "wire", "auth")
#: Parts whose tests need no other program, and nobody's WebSockets but ours.
ALONE = ("api", "auth", "commands", "core", "registry", "server", "settings", "telemetry", "wire")
#: What these try is not Python's: a browser, other programs, generators of load, SQL, documents. One version
#: is enough.
#: So it is for tests that are marked `postgresql`.
TRIED_ONCE = (
    "tests/benchmarks",
    "tests/console",
    "tests/deploy",
    "tests/e2e/test_console.py",
    "tests/e2e/test_front_proxies.py",
    "tests/e2e/test_interop.py",
    "tests/e2e/test_pages.py",
    "tests/e2e/test_takeovers.py",
    "tests/e2e/test_takeovers_in_flight.py",
    "tests/fuzz",
    "tests/registry/test_takeovers.py",
    "tests/storm",
    "tests/test_doc_snippets.py",
    "tests/test_docs.py",
)

#: Many tests wait for processes and timeouts: three of them keep two processors busy. A worker without tests
#: takes some from another.
SIDE_BY_SIDE = ("-n", str(max(2, (os.cpu_count() or 2) * 3 // 2)), "--dist", "worksteal")


def install(session: nox.Session, *groups: str, project: bool = True) -> None:
    """Install dependency groups, and the project itself as its users get it."""
    wanted = [
        requirement for group in groups for requirement in nox.project.dependency_groups(PROJECT, group)
    ]
    session.install(*wanted, *(["."] if project else []))


@nox.session(python=AT_HAND)
def lint(session: nox.Session) -> None:
    """Check format and style, and that compose knows all that its file says."""
    install(session, "lint", project=False)
    session.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml")
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
    """Make the documentation as a site, in docs/_build/html; any warning is an error."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "-n", "-E", "-q", "--keep-going", "docs", "docs/_build/html")
    session.run("towncrier", "build", "--draft", "--version", "next")


@nox.session(python=AT_HAND)
def tables(session: nox.Session) -> None:
    """Write the parts of the documentation that are generated from the code."""
    install(session)
    session.run("python", "docs/tables.py", *session.posargs)


@nox.session(python=AT_HAND)
def coverage(session: nox.Session) -> None:
    """Check that each module of core, wire and auth is covered, every branch, by its own test file."""
    install(session, "tests")
    folder = session.create_tmp()

    def falls_short(name: str) -> bool:
        """Run a module's own tests; say whether they leave a branch of it out."""
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
        str(path.relative_to(package_folder))
        for package in FULLY_COVERED
        for path in sorted((package_folder / package).glob("[!_]*.py"))
    ]
    with ThreadPoolExecutor(os.cpu_count()) as at_once:
        short = [
            name for name, falls in zip(modules, at_once.map(falls_short, modules), strict=True) if falls
        ]
    if short:
        session.error(f"not fully covered by their own tests: {', '.join(short)}")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, as many at a time as there are processors; arguments after -- go to pytest.

    All of them on the Python at hand, what is Python's on the oldest and the newest, and on those in between
    what needs no other process.
    """
    tries_all = session.python == AT_HAND
    install(session, "tests", *(["fronts", "bench"] if tries_all else []))
    chosen = [] if tries_all else [*(f"--ignore={path}" for path in TRIED_ONCE), "-m", "not postgresql"]
    if not tries_all and not session.posargs and session.python in SUPPORTED[1:-1]:
        chosen += [f"tests/{part}" for part in ALONE]
    session.run("pytest", "-q", *SIDE_BY_SIDE, *chosen, *session.posargs)


@nox.session(python=SUPPORTED[0], venv_backend="uv")
def minimums(session: nox.Session) -> None:
    """Run the tests of each part on the oldest dependencies that we say will do; arguments go to pytest."""
    install(session, "tests", project=False)
    # After what the tests need, which is a newer websockets, for its server.
    session.install("--resolution=lowest-direct", "--upgrade", ".")
    parts = session.posargs or [f"tests/{part}" for part in ALONE]
    session.run("pytest", "-q", *SIDE_BY_SIDE, *parts)


@nox.session(python=AT_HAND)
def bench(session: nox.Session) -> None:
    """Measure the relay beside the floor and other relays; arguments after -- go to benchmarks/run.py."""
    install(session)
    # Those that cannot be had here are left out of the measurement, which says so.
    session.install(*nox.project.dependency_groups(PROJECT, "bench"), success_codes=[0, 1, 2])
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session(python=AT_HAND)
def soak(session: nox.Session) -> None:
    """Keep peers coming and going for an hour, and see that nothing grows; arguments go to the script."""
    install(session)
    session.run("python", "benchmarks/soak.py", "--minutes", "60", *session.posargs)


@nox.session(python=AT_HAND)
def storm(session: nox.Session) -> None:
    """Kill a server under 2,000 machines, restart it, see who is back when; arguments go to the script."""
    install(session, "tests")
    session.run("python", "tests/storm/run.py", *session.posargs)


@nox.session(python=AT_HAND)
def fuzz(session: nox.Session) -> None:
    """Look for inputs that nothing expects: frames, messages, HTTP; arguments go to the script."""
    install(session, "fuzz", "tests")
    session.run("python", "tests/fuzz/run.py", *session.posargs)


@nox.session(python=AT_HAND)
def conformance(session: nox.Session) -> None:
    """Run the Autobahn suite against the codec, where a Python 2.7 can be found."""
    session.install(".")
    session.run("python", "tests/conformance/run.py", *session.posargs)
