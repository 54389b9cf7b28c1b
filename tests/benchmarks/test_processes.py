import subprocess
import sys
import time

import pytest
from processes import cpu_s_of, descendants, pss_kib

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
