"""Sharing a device: a link with its QR code, and a short code. Both are valid for a day."""

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal
from urllib.parse import urlencode

import msgspec
import trio
from quart import Blueprint, Response, request

from brewos_relay.api.authentication import Authenticator, current_caller
from brewos_relay.api.device_access import require_access
from brewos_relay.api.hashing import hash_in_thread
from brewos_relay.api.openapi import Done, described, make_blueprint
from brewos_relay.api.pairing import HASHING_AT_ONCE
from brewos_relay.api.payloads import Refused, body_of, json_answer
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.auth.secrets import generate_code, generate_secret_token, hash_code, hash_secret
from brewos_relay.protocols import Registry
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.sharing import new_share, revoke_share, shares_of
from brewos_relay.vocabulary import LAST_TIME_MS, iso_time, now_ms

SHARE_S: Final = 24 * 3600
"""How long a share can be accepted."""

# A share ends with the ownership of its creator.
_NOT_OWNED: Final = (
    "Only owners of a device can share it. You are not an owner; only your token names the device."
)

When = (
    Annotated[float, msgspec.Meta(gt=0, le=LAST_TIME_MS)] | Annotated[datetime, msgspec.Meta(tz=True)] | None
)
"""A time in ms since 1970, or in ISO 8601 with an offset; None for no end."""


class NewShare(msgspec.Struct):
    """The role that a share gives, the end of the access, and how many users may accept the share."""

    role: Literal["member", "viewer"] = "member"
    until: When = None
    # A float, as JSON does not distinguish 1 and 1.0.
    uses: Annotated[float, msgspec.Meta(ge=1, le=1000, multiple_of=1)] | None = None


class NewShareAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """A new share as link, QR code and short code. It is shown only once."""

    share_id: str
    device_id: str
    url: str
    token: str
    manual_code: str
    qr: str
    expires_in: int
    expires_at: str


class ShareAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """A valid share. `until` is null for access without end, `usesLeft` for any number of users."""

    share_id: str
    role: Literal["member", "viewer"]
    until: str | None
    uses_left: int | None
    created_by: str
    created_at: str
    expires_at: str


class Shares(msgspec.Struct):
    """The valid shares of a device."""

    shares: list[ShareAnswer]


@dataclass(frozen=True, slots=True)
class _Secrets:
    """The token and the short code of a share, and their hashes."""

    token: str
    code: str
    token_hash: bytes
    code_hash: bytes


@dataclass(kw_only=True, eq=False)
class SharingRoutes:
    """The routes of the shares of a device."""

    store: Registry
    authenticator: Authenticator
    request_limits: RequestLimits
    proxy_trust: ProxyTrust

    def __post_init__(self) -> None:
        self._hashing = trio.CapacityLimiter(HASHING_AT_ONCE)

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "sharing",
            {
                "POST /api/devices/<device:device_id>/share": self.share,
                "GET /api/devices/<device:device_id>/shares": self.shares,
                "DELETE /api/devices/<device:device_id>/shares/<share_id>": self.revoke,
            },
        )

    @described(
        "Share a device, as an owner",
        answer=NewShareAnswer,
        body=NewShare,
        body_optional=True,
        refusals=[403, 422],
    )
    async def share(self, device_id: str) -> Response:
        requester = await self.authenticator.with_session(request)
        wanted = await body_of(request, NewShare) if await request.get_data() else NewShare()
        access = await require_access(requester, device_id, store=self.store, at_least="owner")
        if access.from_registry is None or access.from_registry.role != "owner":
            raise Refused(_NOT_OWNED, status=403)
        device_id = access.device_id
        at_ms = now_ms()
        until_ms = to_ms(wanted.until, now_ms=at_ms)
        await self.request_limits.shares_by_user.take(requester.user_id)
        made = await hash_in_thread(_make_secrets, known=True, limiter=self._hashing)
        share_id = secrets.token_hex(16)
        expires_at_ms = at_ms + SHARE_S * 1000
        await self.store.write_as(
            Authority(requester.principal, device_id, "owner"),
            new_share,
            share_id=share_id,
            device_id=device_id,
            token_hash=made.token_hash,
            code_hash=made.code_hash,
            role=wanted.role,
            until_ms=until_ms,
            uses_left=None if wanted.uses is None else int(wanted.uses),
            created_by=requester.user_id,
            now_ms=at_ms,
            expires_at_ms=expires_at_ms,
        )
        query = urlencode({"id": device_id, "token": made.token, "share": "true"})
        url = f"{self.proxy_trust.base_url(current_caller())}/pair?{query}"
        import segno  # late: few processes make a QR code

        return json_answer(
            NewShareAnswer(
                share_id=share_id,
                device_id=device_id,
                url=url,
                token=made.token,
                manual_code=made.code,
                qr=segno.make(url, error="m", micro=False).svg_inline(omitsize=True, light="#fff"),
                expires_in=SHARE_S,
                expires_at=iso_time(expires_at_ms),
            )
        )

    @described("List the valid shares of a device, as an owner", answer=Shares, refusals=[403])
    async def shares(self, device_id: str) -> Response:
        requester = await self.authenticator.with_session(request)
        device_id = (await require_access(requester, device_id, store=self.store, at_least="owner")).device_id
        found = await self.store.read(shares_of, device_id, now_ms=now_ms())
        return json_answer(
            Shares(
                shares=[
                    ShareAnswer(
                        share_id=one.id,
                        role="viewer" if one.role == "viewer" else "member",
                        until=iso_time(one.until_ms),
                        uses_left=one.uses_left,
                        created_by=one.created_by,
                        created_at=iso_time(one.created_at_ms),
                        expires_at=iso_time(one.expires_at_ms),
                    )
                    for one in found
                ]
            )
        )

    @described("Revoke a share, so that it can no longer be accepted", answer=Done, refusals=[403])
    async def revoke(self, device_id: str, share_id: str) -> Response:
        requester = await self.authenticator.with_session(request)
        device_id = (await require_access(requester, device_id, store=self.store, at_least="owner")).device_id
        authority = Authority(requester.principal, device_id, "owner")
        if not await self.store.write_as(
            authority, revoke_share, device_id, share_id, user_id=requester.user_id, now_ms=now_ms()
        ):
            raise Refused("This device has no such share.", status=404)
        return json_answer(Done())


def to_ms(when: "float | datetime | None", *, now_ms: int) -> int | None:
    """Convert the end of an access to ms since 1970. Raises Refused (422) if it has passed."""
    until_ms = None if when is None else int(when.timestamp() * 1000 if isinstance(when, datetime) else when)
    if until_ms is not None and until_ms <= now_ms:
        raise Refused("The time in 'until' has passed.", status=422)
    return until_ms


def _make_secrets() -> _Secrets:
    """Generate a token and a short code, and hash both. Hashing the code takes a while."""
    token, code = generate_secret_token(), generate_code()
    return _Secrets(token, code, hash_secret(token), hash_code(code))
