"""The discovery document of an OpenID Connect issuer (OpenID Connect Discovery 1.0 §4). Fetching blocks."""

from collections.abc import Mapping
from typing import Any

from brewos_relay.auth.outbound_http import fetch_json
from brewos_relay.errors import IdentityUnavailable
from brewos_relay.outbound import check_operator_url


def fetch_metadata(issuer: str, *, timeout_s: float) -> dict[str, Any]:
    """Fetch the document of an issuer. Raises IdentityUnavailable, also if it names another issuer."""
    url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    metadata = ask_issuer(issuer, url, timeout_s=timeout_s)
    if metadata.get("issuer") != issuer:
        raise IdentityUnavailable(f"the discovery document of {issuer} names another issuer")
    return metadata


def ask_issuer(issuer: str, url: str, *, timeout_s: float) -> dict[str, Any]:
    """Fetch a JSON object from an issuer. Raises IdentityUnavailable."""
    status, answer = fetch_json(url, timeout_s=timeout_s)
    if status != 200 or not isinstance(answer, dict):
        raise IdentityUnavailable(f"{issuer} gave an unexpected answer (status {status})")
    return answer


def endpoint_in(metadata: Mapping[str, Any], name: str, *, issuer: str) -> str:
    """Return a URL of the document.

    Raises IdentityUnavailable if it is not a URL, or less safe than that of the issuer.
    """
    url = metadata.get(name)
    try:
        check_operator_url(url if isinstance(url, str) else "")
    except ValueError as problem:
        raise IdentityUnavailable(f"{issuer} has no valid {name}: {problem}") from None
    if issuer.startswith("https:") and not str(url).startswith("https:"):
        raise IdentityUnavailable(f"{issuer} names an unencrypted {name}")
    return str(url)
