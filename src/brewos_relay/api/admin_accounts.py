"""/api/admin/users, invites and tokens: the accounts of a server, for its administrators."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from quart import Blueprint, Response, request
from sqlalchemy import Connection

from brewos_relay.api.authentication import Authenticator, current_caller
from brewos_relay.api.openapi import Done, described, make_blueprint
from brewos_relay.api.payloads import (
    PageQuery,
    Refused,
    ShortText,
    as_sentence,
    body_of,
    cursor_of,
    json_answer,
    query_of,
)
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.auth.secrets import generate_secret_token, hash_secret
from brewos_relay.protocols import Registry
from brewos_relay.registry.account_removal import close_account
from brewos_relay.registry.accounts import UserFilter, UserSort, find_user, lock_admins, set_admin, some_users
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.invites import add_invite
from brewos_relay.registry.issued_tokens import all_tokens, revoke_token
from brewos_relay.registry.records import StoredToken, User
from brewos_relay.vocabulary import Role, iso_time, now_ms

INVITE_S: Final = 7 * 24 * 3600
"""How long an invite is valid."""

REMOVAL_S: Final = 5.0
"""How long a request waits until the devices of a removed account are released. The rest runs later."""

_NO_USER: Final = "There is no such account."

_LAST_ADMIN: Final = "This is the last administrator. Make another account an administrator first."


class Listing(msgspec.Struct):
    """A page of entries: at most `limit`, after the entry `after`, that contain `find`, in an order."""

    find: Annotated[str, msgspec.Meta(max_length=320)] = ""
    after: Annotated[str, msgspec.Meta(max_length=320)] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100
    order: Literal["asc", "desc"] = "asc"


class AccountListing(Listing):
    """A page of accounts. `only` limits the list further."""

    only: UserFilter = "all"
    sort: UserSort = "email"


class Account(msgspec.Struct, rename="camel", kw_only=True):
    """An account."""

    id: str
    email: str
    name: str | None
    is_admin: bool
    has_password: bool
    created_at: str


class Accounts(msgspec.Struct):
    """Accounts. `next` is the `after` of the next page, or null."""

    users: list[Account]
    next: str | None


class NewInvite(msgspec.Struct, rename="camel"):
    """An invitation for an e-mail address."""

    email: ShortText
    is_admin: bool = False


class InviteAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """A one-time link for signing in. It is shown only once."""

    email: str
    url: str
    expires_at: str


class AccountChange(msgspec.Struct, rename="camel"):
    """The new state of an account."""

    is_admin: bool


class TokenAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """A token that was made on the command line. `devices` is a list of ids, or "*" for all devices."""

    id: str
    name: str | None
    user_id: str
    role: Role
    devices: list[str] | Literal["*"]
    created_at: str
    expires_at: str
    revoked_at: str | None


class Tokens(msgspec.Struct):
    """Tokens that have not expired, newest first. `next` is the `after` of the next page, or null."""

    tokens: list[TokenAnswer]
    next: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class AdminAccountRoutes:
    """The routes of accounts, invites and tokens, for administrators."""

    store: Registry
    authenticator: Authenticator
    proxy_trust: ProxyTrust

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "admin_accounts",
            {
                "GET /api/admin/users": self.all_accounts,
                "PATCH /api/admin/users/<user_id>": self.change_account,
                "DELETE /api/admin/users/<user_id>": self.remove_account,
                "POST /api/admin/invites": self.invite_somebody,
                "GET /api/admin/tokens": self.list_tokens,
                "DELETE /api/admin/tokens/<token_id>": self.end_token,
            },
        )

    @described(
        "List the accounts of this server, as an administrator",
        answer=Accounts,
        query=AccountListing,
        refusals=[403],
    )
    async def all_accounts(self) -> Response:
        await self.authenticator.administrator(request)
        page = query_of(request, AccountListing)
        found = await self.store.read(
            some_users,
            find=page.find,
            only=page.only,
            sort=page.sort,
            descending=page.order == "desc",
            after=page.after,
            limit=page.limit,
        )
        return json_answer(
            Accounts(
                users=[_account_answer(user) for user in found],
                next=found[-1].email if len(found) == page.limit else None,
            )
        )

    @described(
        "Grant or withdraw administrator rights",
        answer=Account,
        body=AccountChange,
        refusals=[403, 409],
    )
    async def change_account(self, user_id: str) -> Response:
        requester = await self.authenticator.administrator(request)
        body = await body_of(request, AccountChange)
        authority = Authority(requester.principal, is_admin=True)
        user = await self.store.write_as(authority, _set_admin, user_id, body.is_admin)
        return json_answer(_account_answer(user))

    @described("Remove an account, its sessions and its access to devices", answer=Done, refusals=[403, 409])
    async def remove_account(self, user_id: str) -> Response:
        requester = await self.authenticator.administrator(request)
        # In a transaction of its own: the user is signed out even if the rest fails.
        await self.store.write_as(
            Authority(requester.principal, is_admin=True), _close_account, user_id, now_ms=now_ms()
        )
        await self.store.catch_up(ends_only=True)
        await self.store.finish_removals(within_s=REMOVAL_S)
        await self.store.catch_up()
        return json_answer(Done())

    @described(
        "Create a one-time sign-in link; signing in creates the account if needed",
        answer=InviteAnswer,
        body=NewInvite,
        refusals=[403],
    )
    async def invite_somebody(self) -> Response:
        requester = await self.authenticator.administrator(request)
        body = await body_of(request, NewInvite)
        token = generate_secret_token()
        at_ms = now_ms()
        expires_at_ms = at_ms + INVITE_S * 1000
        try:
            await self.store.write_as(
                Authority(requester.principal, is_admin=True),
                add_invite,
                email=body.email,
                token_hash=hash_secret(token),
                is_admin=body.is_admin,
                expires_at_ms=expires_at_ms,
                now_ms=at_ms,
                created_by=requester.user_id,
            )
        except ValueError as problem:
            raise Refused(as_sentence(problem), status=400) from None
        return json_answer(
            InviteAnswer(
                email=body.email.strip(),
                url=f"{self.proxy_trust.base_url(current_caller())}/login#invite={token}",
                expires_at=iso_time(expires_at_ms),
            )
        )

    @described(
        "List the tokens that were made on the command line, as an administrator",
        answer=Tokens,
        query=PageQuery,
        refusals=[403],
    )
    async def list_tokens(self) -> Response:
        await self.authenticator.administrator(request)
        page = query_of(request, PageQuery)
        found = await self.store.read(all_tokens, after=page.cursor(), limit=page.limit, now_ms=now_ms())
        return json_answer(
            Tokens(
                tokens=[_token_answer(token) for token in found],
                next=cursor_of(found[-1].created_at_ms, found[-1].id) if len(found) == page.limit else None,
            )
        )

    @described("Revoke a token and close its connections", answer=Done, refusals=[403])
    async def end_token(self, token_id: str) -> Response:
        requester = await self.authenticator.administrator(request)
        authority = Authority(requester.principal, is_admin=True)
        if not await self.store.write_as(authority, revoke_token, token_id, now_ms=now_ms()):
            raise Refused("There is no such token. It may be revoked already.", status=404)
        await self.store.catch_up(ends_only=True)
        return json_answer(Done())


def _set_admin(db: Connection, user_id: str, is_admin: bool) -> User:
    """Grant or withdraw administrator rights. Raises Refused for an unknown account or the last one."""
    admins = lock_admins(db)
    if not is_admin and admins == [user_id]:
        raise Refused(_LAST_ADMIN, status=409)
    set_admin(db, user_id, is_admin)
    user = find_user(db, user_id)
    if user is None:
        raise Refused(_NO_USER, status=404)
    return user


def _close_account(db: Connection, user_id: str, *, now_ms: int) -> None:
    """Close an account. Raises Refused for an unknown account or the last administrator."""
    if lock_admins(db) == [user_id]:
        raise Refused(_LAST_ADMIN, status=409)
    if not close_account(db, user_id, now_ms=now_ms):
        raise Refused(_NO_USER, status=404)


def _account_answer(user: User) -> Account:
    return Account(
        id=user.id,
        email=user.email,
        name=user.name,
        is_admin=user.is_admin,
        has_password=user.has_password,
        created_at=iso_time(user.created_at_ms),
    )


def _token_answer(token: StoredToken) -> TokenAnswer:
    return TokenAnswer(
        id=token.id,
        name=token.name,
        user_id=token.user_id,
        role=token.role,
        devices=token.devices if token.devices == "*" else sorted(token.devices),
        created_at=iso_time(token.created_at_ms),
        expires_at=iso_time(token.expires_at_ms),
        revoked_at=iso_time(token.revoked_at_ms),
    )
