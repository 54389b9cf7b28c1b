import json
import subprocess
import sys

from support.process import environment

SECRET = 'Zauber"wort-ä\\{}'
PROGRAM = f"""
import sys, threading, warnings
from brewos_relay.telemetry.logs import configure_logging
from brewos_relay.telemetry.uncaught import log_uncaught

SECRET = {SECRET!r}

class Late:
    def __del__(self):
        raise ValueError("late " + SECRET)

def fail():
    raise ValueError("thread " + SECRET)

configure_logging(log_format="json", secrets=[SECRET])
log_uncaught()
warnings.warn("two lines\\nof " + SECRET)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
late = Late()
del late
raise LAST("last " + SECRET)
"""


def test_what_nobody_catches_is_one_object_a_line_without_secrets() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("LAST", "RuntimeError")],
        env=environment(),
        capture_output=True,
        timeout=30,
    )
    assert ran.returncode == 1
    entries = [json.loads(line) for line in ran.stderr.splitlines()]
    levels = [entry["level"] for entry in entries]
    assert levels == ["warning", "error", "error", "critical"]
    warned, *raised = entries
    assert "two lines" in warned["event"]
    for entry, what in zip(raised, ("thread", "late", "last"), strict=True):
        assert f"{what} [hidden]" in entry["exception"]
        assert "Traceback" in entry["exception"]
    for text in (SECRET, "Zauber", "wort-"):
        assert text not in json.dumps(entries, ensure_ascii=False)


def test_ctrl_c_is_no_failure() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("LAST", "KeyboardInterrupt")],
        env=environment(),
        capture_output=True,
        timeout=30,
    )
    assert b"nobody caught this, so" not in ran.stderr
    assert b"KeyboardInterrupt" in ran.stderr
