"""The results of the Autobahn test suite, and whether they are acceptable."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CORE_CASES: Final = 247
MOST_NON_STRICT: Final = 4

_VERDICTS: Final = ("passed", "non-strict", "informational", "failed")  # better ones first
_OF_BEHAVIOR: Final = {"OK": "passed", "NON-STRICT": "non-strict", "INFORMATIONAL": "informational"}
# The suite's classification: a close with another code, or one completed by the client, is non-strict.
_OF_CLOSE: Final = {
    "OK": "passed",
    "INFORMATIONAL": "passed",
    "WRONG CODE": "non-strict",
    "FAILED BY CLIENT": "non-strict",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: the suite's verdicts on the messages and on the close."""

    case_id: str
    behavior: str
    behavior_close: str
    report: Path

    @property
    def verdict(self) -> str:
        """`passed`, `non-strict`, `informational` or `failed`; a bad close counts as much as a bad answer."""
        behavior = _OF_BEHAVIOR.get(self.behavior, "failed")
        close = _OF_CLOSE.get(self.behavior_close, "failed")
        return behavior if close == "passed" or behavior == "failed" else close

    def explain(self) -> str:
        """Summarize the case in one line."""
        try:
            detail = json.loads(self.report.read_text(encoding="utf-8"))
            found = f"{detail['result']} {detail['resultClose']}"
        except (OSError, ValueError, KeyError):
            found = "(its report cannot be read)"
        text = f"{self.case_id}: {self.behavior}, close {self.behavior_close}: {found}"
        return textwrap.shorten(text, 300, placeholder=" …")


def read_report(report_dir: Path, *, agent: str) -> list[Case]:
    """Read the verdicts on one agent, in the order of the case numbers."""
    index = json.loads((report_dir / "index.json").read_text(encoding="utf-8"))
    cases = [
        Case(
            case_id=case_id,
            behavior=entry["behavior"],
            behavior_close=entry["behaviorClose"],
            report=report_dir / entry["reportfile"],
        )
        for case_id, entry in index.get(agent, {}).items()
    ]
    return sorted(cases, key=lambda case: [int(part) for part in case.case_id.split(".")])


def problems_of(cases: Sequence[Case]) -> list[str]:
    """Return why a run is not acceptable; empty if it is."""
    verdicts = [case.verdict for case in cases]
    failed, non_strict = verdicts.count("failed"), verdicts.count("non-strict")
    problems: list[str] = []
    if len(cases) < CORE_CASES:
        problems.append(f"only {len(cases)} of {CORE_CASES} cases ran")
    if failed:
        problems.append(f"{failed} failed")
    if non_strict > MOST_NON_STRICT:
        problems.append(f"{non_strict} are non-strict, more than {MOST_NON_STRICT}")
    return problems


def differences(cases: Sequence[Case], others: Sequence[Case]) -> list[str]:
    """Return the cases with other verdicts of the suite than in another run, or that only one run has."""
    here, there = (
        {case.case_id: (case.behavior, case.behavior_close) for case in run} for run in (cases, others)
    )
    return [
        f"{case_id}: {_shown(here.get(case_id))}, there {_shown(there.get(case_id))}"
        for case_id in dict.fromkeys((*here, *there))
        if here.get(case_id) != there.get(case_id)
    ]


def _shown(verdicts: tuple[str, str] | None) -> str:
    return "did not run" if verdicts is None else f"{verdicts[0]}, close {verdicts[1]}"


def summarize(cases: Sequence[Case]) -> list[str]:
    """Return a line of counts, and a line for each case that failed or is non-strict."""
    groups = {verdict: [case for case in cases if case.verdict == verdict] for verdict in _VERDICTS}
    counts = ", ".join(f"{len(group)} {verdict}" for verdict, group in groups.items())
    worth_a_look = [
        f"  {verdict} {case.explain()}" for verdict in ("failed", "non-strict") for case in groups[verdict]
    ]
    return [f"{len(cases)} cases: {counts}", *worth_a_look]
