"""What a server's log says of errors."""

import msgspec


def errors_in(log: str) -> list[str]:
    """Give the lines of a log in JSON that tell of an error, and those that are no JSON: a traceback, say."""
    found = []
    for line in log.splitlines():
        try:
            level = msgspec.json.decode(line)["level"]
        except (msgspec.MsgspecError, TypeError, KeyError):
            level = "none"
        if line.strip() and level not in {"debug", "info", "warning"}:
            found.append(line)
    return found
