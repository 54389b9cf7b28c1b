import os
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from processes import Process, cpu_s_of, cpu_s_of_others, descendants, pss_kib

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is read")


def test_descendants_are_found_and_killed() -> None:
    inner = "import time; time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen([sys.executable, "-c", outer]) as process:
        try:
            deadline_s = time.monotonic() + 20
            while not (found := descendants(process.pid)) and time.monotonic() < deadline_s:
                time.sleep(0.01)
            [child] = found
            assert child.parent == process.pid
            assert child.name.startswith("python")
            assert pss_kib(child.pid) > 0
            child.kill()
            process.wait(20)
            child.kill()  # it has ended: nothing happens
        finally:
            process.kill()
    assert descendants(process.pid) == []


def test_cpu_time_of_a_process_is_read() -> None:
    before_s = time.process_time()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        first_s = cpu_s_of(process.pid)
        assert first_s >= 0
        process.communicate(b"\n", timeout=20)
    assert time.process_time() >= before_s
    with pytest.raises(OSError):  # noqa: PT011 - of several kinds
        cpu_s_of(process.pid)


def test_cpu_time_of_other_programs_leaves_out_this_process_and_its_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of(pid: int, parent: int, cpu_s: float) -> Process:
        return Process(pid=pid, parent=parent, name="x", start=1, cpu_s=cpu_s)

    me = os.getpid()
    mine = [of(me, 1, 100.0), of(-2, me, 10.0), of(-3, -2, 10.0)]
    kernel = [of(2, 0, 7.0), of(-5, 2, 7.0)]
    everything = [of(1, 0, 0.5), of(-4, 1, 2.0), *mine, *kernel]
    monkeypatch.setattr(processes, "_read_all", lambda: everything)
    assert cpu_s_of_others() == 2.5


def test_process_is_the_same_while_it_uses_cpu_time() -> None:
    assert Process(7, 1, "x", 3, 1.0) == Process(7, 1, "x", 3, 2.0)


def test_adopted_orphan_does_not_count_as_another_program() -> None:
    inner = "import time; time.sleep(60)"
    middle = (
        "import subprocess, sys; null = subprocess.DEVNULL; "
        f"print(subprocess.Popen([sys.executable, '-c', {inner!r}], stdout=null).pid)"
    )
    adopting = f"""
import os, subprocess, sys
from processes import adopt_orphans, descendants
adopt_orphans()
pid = int(subprocess.run([sys.executable, "-c", {middle!r}], stdout=subprocess.PIPE).stdout)
(orphan,) = descendants(os.getpid())
assert (orphan.pid, orphan.parent) == (pid, os.getpid())
orphan.kill()
assert descendants(os.getpid()) == []
"""
    folder = str(Path(processes.__file__).parent)
    subprocess.run([sys.executable, "-c", adopting], check=True, timeout=20, env={"PYTHONPATH": folder})
