import pytest

from support.logs import errors_in


@pytest.mark.parametrize(
    ("line", "is_error"),
    [
        ('{"level": "info", "event": "ERROR is only a word"}', False),
        ('{"level": "warning", "event": "a certificate ends soon"}', False),
        ('{"level": "error", "event": "a bug"}', True),
        ('{"level": "critical", "event": "worse"}', True),
        ("Traceback (most recent call last):", True),
        ('{"event": "who says that?"}', True),
        ("[]", True),
        ("", False),
    ],
)
def test_errors_of_a_log_are_found(line: str, is_error: bool) -> None:
    assert errors_in(f'{{"level": "info"}}\n{line}\n') == ([line] if is_error else [])
