"""Find errors in a server's log."""

import msgspec


def errors_in(log: str) -> list[str]:
    """Return the error lines of a JSON log, and all lines that are not JSON, such as a traceback."""
    found = []
    for line in log.splitlines():
        try:
            level = msgspec.json.decode(line)["level"]
        except (msgspec.MsgspecError, TypeError, KeyError):
            level = "none"
        if line.strip() and level not in {"debug", "info", "warning"}:
            found.append(line)
    return found
