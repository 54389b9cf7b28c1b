"""GET /api/firmware/releases: the list of firmware releases, in the format that the BrewOS app reads."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import msgspec
from quart import Blueprint, Response

from brewos_relay.api.openapi import described, make_blueprint
from brewos_relay.api.payloads import Refused, json_answer

_Text = Annotated[str, msgspec.Meta(max_length=2000)]


class Asset(msgspec.Struct):
    """A file of a release."""

    name: _Text = ""
    updated_at: _Text | None = None


class Release(msgspec.Struct):
    """A firmware release, in the fields of GitHub's API that the app reads. `body` has the notes."""

    tag_name: _Text
    prerelease: bool = False
    published_at: _Text | None = None
    body: str | None = None
    html_url: _Text | None = None
    assets: list[Asset] = []


FindReleases: TypeAlias = Callable[[], Awaitable[Sequence[Release] | None]]
"""Returns the known releases; None if none is known."""


async def no_releases() -> Sequence[Release]:
    """Return no releases."""
    return ()


@dataclass(frozen=True, kw_only=True, eq=False)
class FirmwareRoutes:
    """The route of firmware releases. The list is public; an update is a command, for owners."""

    find_releases: FindReleases

    def blueprint(self) -> Blueprint:
        """Make the blueprint of this route."""
        return make_blueprint("firmware", {"GET /api/firmware/releases": self.firmware_releases})

    @described("List the firmware releases, newest first", answer=list[Release], needs_token=False)
    async def firmware_releases(self) -> Response:
        found = await self.find_releases()
        if found is None:
            raise Refused(
                "The firmware releases cannot be read at the moment. Try again soon.",
                status=503,
                headers={"Retry-After": "60"},
            )
        return json_answer(list(found))
