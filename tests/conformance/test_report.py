import json
from pathlib import Path

import pytest

from conformance.report import CORE_CASES, Case, differences, problems_of, read_report, summarize


def case(case_id: str = "1.1.1", *, behavior: str = "OK", close: str = "OK") -> Case:
    return Case(case_id=case_id, behavior=behavior, behavior_close=close, report=Path("nowhere.json"))


def cases_with(*odd: Case) -> list[Case]:
    return [*odd, *(case() for _ in range(CORE_CASES - len(odd)))]


@pytest.mark.parametrize(
    ("behavior", "close", "verdict"),
    [
        ("OK", "OK", "passed"),
        ("OK", "INFORMATIONAL", "passed"),
        ("INFORMATIONAL", "OK", "informational"),
        ("NON-STRICT", "OK", "non-strict"),
        ("FAILED", "OK", "failed"),
        ("UNIMPLEMENTED", "OK", "failed"),
        ("OK", "WRONG CODE", "non-strict"),
        ("INFORMATIONAL", "FAILED BY CLIENT", "non-strict"),
        ("OK", "UNCLEAN", "failed"),
        ("NON-STRICT", "FAILED", "failed"),
        ("FAILED", "WRONG CODE", "failed"),
    ],
)
def test_answer_and_close_both_count(behavior: str, close: str, verdict: str) -> None:
    assert case(behavior=behavior, close=close).verdict == verdict


def test_few_non_strict_cases_are_acceptable() -> None:
    odd = case(behavior="NON-STRICT")
    assert problems_of(cases_with(*[odd] * 4)) == []
    assert problems_of(cases_with(*[odd] * 5)) == ["5 are non-strict, more than 4"]


def test_failed_or_missing_case_is_not_acceptable() -> None:
    assert problems_of(cases_with(case(behavior="FAILED"))) == ["1 failed"]
    assert problems_of([case()]) == [f"only 1 of {CORE_CASES} cases ran"]
    assert problems_of([]) == [f"only 0 of {CORE_CASES} cases ran"]


def test_runs_are_compared_case_by_case() -> None:
    run = [case("1.1.1"), case("1.1.2")]
    assert differences(run, run) == []
    assert differences(run, [case("1.1.1", close="UNCLEAN"), case("1.1.3")]) == [
        "1.1.1: OK, close OK, there OK, close UNCLEAN",
        "1.1.2: OK, close OK, there did not run",
        "1.1.3: did not run, there OK, close OK",
    ]


def test_report_is_in_the_order_of_case_numbers(tmp_path: Path) -> None:
    entry = {"behavior": "OK", "behaviorClose": "OK", "reportfile": "a.json"}
    index = {"us": {"1.1.10": entry, "1.1.2": entry | {"behavior": "FAILED"}}, "them": {"1.1.1": entry}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "a.json").write_text(json.dumps({"result": "Something\nelse came.", "resultClose": "Fine."}))
    cases = read_report(tmp_path, agent="us")
    assert [found.case_id for found in cases] == ["1.1.2", "1.1.10"]
    assert summarize(cases) == [
        "2 cases: 1 passed, 0 non-strict, 0 informational, 1 failed",
        "  failed 1.1.2: FAILED, close OK: Something else came. Fine.",
    ]
    assert read_report(tmp_path, agent="nobody") == []


def test_case_without_its_own_report_is_listed() -> None:
    assert "cannot be read" in summarize([case(behavior="FAILED")])[1]
