"""Crowds: how many clients each user has, so that nobody keeps others out."""

from brewos_relay.core.grant import Grant


class Crowds:
    """Counts the clients of each user.

    Those whose token itself names the device are not counted: whoever made it knows for how many it is.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def came(self, grant: Grant) -> None:
        """Count a client that has come."""
        self._count(grant, 1)

    def went(self, grant: Grant) -> None:
        """Count a client that has gone."""
        self._count(grant, -1)

    def around(self, grant: Grant) -> int:
        """Give the number of clients of the user whose grant this is; 0 if they are not counted."""
        user_id = _counted(grant)
        return 0 if user_id is None else self._counts.get(user_id, 0)

    def _count(self, grant: Grant, change: int) -> None:
        user_id = _counted(grant)
        if user_id is None:
            return
        count = self._counts.get(user_id, 0) + change
        if count:
            self._counts[user_id] = count
        else:
            del self._counts[user_id]


def _counted(grant: Grant) -> str | None:
    return None if grant.by_token else grant.user_id
