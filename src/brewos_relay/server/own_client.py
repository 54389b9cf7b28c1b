"""How a client on the computer of a server reaches it, and which certificates it trusts."""

import ssl
from pathlib import Path
from typing import Final

from brewos_relay.server.local_ca import CERTIFICATE_FILE, FOLDER
from brewos_relay.server.self_signed import FILE_NAME
from brewos_relay.settings import Settings

_ANY: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"


def local_url(settings: Settings) -> str:
    """Return the URL of a server with these settings on this computer."""
    host = _ANY.get(settings.host, settings.host)
    scheme = "https" if settings.speaks_tls else "http"
    return f"{scheme}://[{host}]:{settings.port}" if ":" in host else f"{scheme}://{host}:{settings.port}"


def tls_context(settings: Settings, url: str) -> ssl.SSLContext | None:
    """Return the TLS context for a client of a server with these settings; None for a URL without TLS.

    It trusts the authorities of the system, the local CA, and the server's own certificate. That certificate
    may be for another name than `local_url`, whose host is therefore not compared.
    """
    if not url.startswith(("https:", "wss:")):
        return None
    context = ssl.create_default_context()
    if settings.tls_self_signed:
        for file in (settings.data_dir / FOLDER / CERTIFICATE_FILE, settings.data_dir / FILE_NAME):
            _trust(context, file)
    elif settings.tls_cert is not None and url == local_url(settings):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        _trust(context, settings.tls_cert)
    return context


def _trust(context: ssl.SSLContext, file: Path) -> None:
    """Trust the first certificate in a file, if there is one that this user can read."""
    try:
        pem = file.read_text("ascii")
        begin = pem.index(_BEGIN)
        context.load_verify_locations(cadata=f"{pem[begin : pem.index(_END, begin)]}{_END}\n")
    except (OSError, ValueError):
        return
