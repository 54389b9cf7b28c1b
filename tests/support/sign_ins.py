"""People who sign in to a household's API."""

import secrets
from typing import Any

from brewos_relay.auth.identity_providers import ProvenIdentity
from brewos_relay.auth.passwords import hash_password
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.errors import IdentityRejected
from brewos_relay.registry.accounts import add_user, set_password_hash
from brewos_relay.registry.invites import add_invite
from brewos_relay.registry.records import User
from brewos_relay.vocabulary import now_ms
from support.household import Answer, Household

EMAIL = "ada@example.org"
PASSWORD = "correct horse battery"


class PlainVerifier:
    """Accepts the proofs that it knows. A proof may be an exception, which is raised."""

    def __init__(self, **known: ProvenIdentity | Exception) -> None:
        self.known = known

    def verify(self, token: str, /) -> ProvenIdentity:
        found = self.known.get(token, IdentityRejected("the token's signature is wrong"))
        if isinstance(found, Exception):
            raise found
        return found


def proven(email: str | None = EMAIL, **changed: Any) -> ProvenIdentity:
    """Issue an ID token for a user, as an issuer does."""
    told: dict[str, Any] = {
        "issuer": "https://issuer.example",
        "subject": f"subject of {email}",
        "email": email,
        "email_verified": True,
        "name": "Ada",
        "picture_url": "https://pictures.example/ada.png",
    }
    return ProvenIdentity(**{**told, **changed})


async def invited(house: Household, email: str = EMAIL, *, for_ms: int = 60_000) -> str:
    """Invite a user and return the token of the link."""
    token = secrets.token_urlsafe(32)
    at_ms = now_ms()
    await house.store.write(
        add_invite,
        email=email,
        token_hash=hash_secret(token),
        is_admin=False,
        expires_at_ms=at_ms + for_ms,
        now_ms=at_ms,
    )
    return token


async def sign_in(house: Household, email: str = EMAIL) -> dict[str, Any]:
    """Sign a user in with a one-time link and return the session that an app stores."""
    answer = await ask(house, "/auth/invite", {"token": await invited(house, email)})
    assert answer.status == 200
    session: dict[str, Any] = answer.content
    return session


async def add_account(house: Household, email: str = EMAIL, password: str = PASSWORD) -> User:
    """Make an account with a password."""
    user = await house.store.write(add_user, email=email, name=None, now_ms=now_ms())
    await house.store.write(set_password_hash, user.id, hash_password(password))
    return user


async def ask(
    house: Household, path: str, body: Any = None, *, method: str = "POST", token: str | None = None
) -> Answer:
    """Send a request, anonymously or with a token."""
    return await house.ask(method, path, body, by=None, token=token)


async def admitted(house: Household, path: str, body: dict[str, Any], *, but: int) -> int:
    """Ask until the limit of the path is reached (429). Count the responses before it, all with status `but`.

    A slower computer gets more of them, since the budget refills meanwhile. The limit that all requests share
    does not count.
    """
    for count in range(1000):
        answer = await ask(house, path, body)
        if answer.status == 429:
            assert not answer.content["error"].startswith("Too many requests."), "the path has no limit"
            return count
        assert answer.status == but
    raise AssertionError(f"{path} has no limit")
