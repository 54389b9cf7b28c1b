"""The writes of the HTTP API that no session, token or role authorises, each with the reason."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from brewos_relay.registry.accounts import redeem_invite, sign_in
from brewos_relay.registry.keys import add_next_key, drop_next_key
from brewos_relay.registry.known_networks import note_network
from brewos_relay.registry.pairing import register_claim
from brewos_relay.registry.sessions import end_session, open_session, refresh

ANONYMOUS_WRITES: Final[Mapping[Callable[..., Any], str]] = {
    sign_in: "the issuer of an identity proves it; the account is looked up in the transaction",
    redeem_invite: "the token of the invite is the authority; the transaction uses it up",
    open_session: "a sign-in that was just proved; the transaction checks the account and the password again",
    note_network: "a password that was just checked; the transaction locks the account, if it is still there",
    refresh: "the refresh token is the authority; the transaction checks and replaces it",
    end_session: "a signed token names the session; ending it gives nothing, and ending it twice is no error",
    register_claim: "a machine has no account; the transaction checks the key that it sends",
    add_next_key: "asked for on the command line; the change feed is written by administrators alone",
    drop_next_key: "undoes an add_next_key of the same request, whose key was never sent",
}
