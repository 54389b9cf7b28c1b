import os
import subprocess
import sys

import pinning
import pytest
from pinning import Pins, choose_pins, describe, pinned_to, read_list

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processors are chosen on Linux")


@pytest.mark.parametrize(
    ("text", "found"), [("0\n", {0}), ("0,4", {0, 4}), ("0-3,8\n", {0, 1, 2, 3, 8}), ("2-2", {2})]
)
def test_a_list_of_processors_is_read(text: str, found: set[int]) -> None:
    assert read_list(text) == found


@pytest.mark.parametrize(
    ("allowed", "siblings", "pins"),
    [
        ({0}, {0}, Pins()),
        ({0, 1}, {0}, Pins(server=1, generator=0)),
        ({0, 1}, {0, 1}, Pins(server=1, generator=0)),  # better than none
        ({0, 1, 2, 3}, {0, 2}, Pins(server=3, generator=0)),
        ({0, 1, 2, 3}, {0, 3}, Pins(server=2, generator=0)),
        ({5, 7}, {5}, Pins(server=7, generator=5)),
    ],
)
def test_server_and_generator_get_processors_of_two_cores(
    monkeypatch: pytest.MonkeyPatch, allowed: set[int], siblings: set[int], pins: Pins
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    monkeypatch.setattr(pinning, "_siblings", lambda _: siblings)
    assert choose_pins() == pins


def test_a_process_starts_where_it_is_to_run() -> None:
    cpu = max(os.sched_getaffinity(0))
    show = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
    done = subprocess.run(show, capture_output=True, text=True, check=True, preexec_fn=pinned_to(cpu))
    assert done.stdout.strip() == str({cpu})
    assert pinned_to(None) is None


def test_the_chosen_workloads_are_printed() -> None:
    assert describe(Pins(server=1, generator=0)) == "server on processor 1, generator on 0"
    assert "the system chose" in describe(Pins())
