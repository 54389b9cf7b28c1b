"""The settings of a server, and the checks that concern several of them."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote

from brewos_relay.errors import SettingsError
from brewos_relay.settings.parsing import Network, parse_texts
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.settings.sources import PREFIX

DATABASE_FILE: Final = "brewos-relay.db"
MIN_JWT_SECRET_BYTES: Final = 32
MIN_METRICS_TOKEN_CHARS: Final = 16

FIRST_LIMITS: Final = (
    "clients_per_device",
    "clients_per_user",
    "client_rate",
    "client_burst",
    "device_rate",
    "device_burst",
    "admit_rate",
    "drain_s",
    "snapshot_s",
    "state_retention_s",
    "history_s",
    "history_bytes",
    "history_total_bytes",
    "shots_per_device",
    "owner_commands",
    "never_wait",
)
"""The limits that operators change first. The settings reference lists the others as advanced."""

# In SQLAlchemy, a password ends at the first `@`, and may contain `/`, `?` and `#`. In other parsers, it ends
# at the last `@` before any of these.
_PASSWORDS: Final = (re.compile(r"://[^:/]*:([^@]+)@"), re.compile(r"://[^:/]*:([^/?#]+)@"))
_PASSWORD_NAMES: Final = ("password", "sslpassword")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The checked settings of a server."""

    # Addresses and ports
    host: str = ""
    """Address to listen on. Empty: all IPv4 and IPv6 interfaces."""
    port: int = 3001
    """Port to listen on. 0: any free port."""
    workers: int = 1
    """Processes that serve the port together, at most 64: one for each core. More than one need a bus between
    them."""
    public_url: str | None = None
    """Base URL for links: `http` or `https`, a host and an optional port, without a path. Not set: links use
    the address of the request."""

    # TLS
    tls_cert: Path | None = None
    """PEM file with the certificate chain, the server's certificate first. With it, the port speaks TLS.
    Requires `BREWOS_RELAY_TLS_KEY`."""
    tls_key: Path | None = None
    """PEM file with the private key of the certificate, without a passphrase."""
    tls_self_signed: bool = False
    """Speak TLS with a certificate of a local CA, which phones can trust. The relay creates both, renews the
    certificate, and stores them in the data folder. Cannot be combined with `BREWOS_RELAY_TLS_CERT`."""
    redirect_port: int | None = None
    """A second port that redirects plain HTTP to HTTPS (308). Requires TLS. 0: any free port."""

    # Behind a proxy
    trusted_proxies: tuple[Network, ...] = ()
    """Networks (`10.0.0.0/8`) and addresses of proxies whose `X-Forwarded-For`, `-Proto` and `-Host` headers
    the relay trusts. The option takes one value and is repeatable."""
    proxy_protocol: bool = False
    """Connections from trusted proxies begin with a PROXY protocol header, version 1 or 2. Requires
    `BREWOS_RELAY_TRUSTED_PROXIES`."""

    # Token keys
    jwt_secret: str = field(default="", repr=False)
    """Secrets of at least 32 bytes each. The first one signs tokens; all of them verify tokens. Required for
    `serve` and `token` unless `BREWOS_RELAY_JWT_KEY_FILES` is set."""
    jwt_key_files: tuple[Path, ...] = ()
    """PEM files with private keys: Ed25519, or RSA of at least 2048 bits. The first key signs tokens, instead
    of a secret; all keys verify tokens."""

    # Sign-in
    sign_up: str = "open"
    """Who may create an account. `open`: every user that an identity provider confirms. `invited`: only users
    with an invite."""
    google_client_ids: tuple[str, ...] = ()
    """Google client IDs: accepted audiences of Google's ID tokens. The sign-in page uses the first one.
    Empty: no sign-in with Google."""
    google_client_secret: str = field(default="", repr=False)
    """Secret of the first Google client ID. With it, the relay's sign-in page has a button for Google.
    Requires `PUBLIC_URL`."""
    oidc_issuer: str | None = None
    """OpenID Connect issuer, exactly as in the `iss` claim of its tokens: an `https` URL, or `http` for this
    computer. Requires `BREWOS_RELAY_OIDC_CLIENT_ID` or `BREWOS_RELAY_OIDC_AUDIENCE`."""
    oidc_client_id: str = ""
    """ID of the relay at the issuer, also an accepted audience. With it, the relay's sign-in page has a
    button for the issuer. Requires `PUBLIC_URL`."""
    oidc_client_secret: str = field(default="", repr=False)
    """Secret of that client. Empty: a public client, which PKCE protects."""
    oidc_label: str = ""
    """Name of the issuer on the button. Empty: its host name."""
    oidc_audiences: tuple[str, ...] = ()
    """Accepted audiences (client IDs) of the issuer's ID tokens."""
    oidc_jwks_url: str | None = None
    """URL of the issuer's public keys (JWKS). Not set: taken from the issuer's
    `/.well-known/openid-configuration`."""
    facebook_app_id: str = ""
    """ID of the Facebook app whose access tokens are accepted. Requires
    `BREWOS_RELAY_FACEBOOK_APP_SECRET`."""
    facebook_app_secret: str = field(default="", repr=False)
    """Secret of the Facebook app."""

    # Pairing
    pairing: str = "open"
    """Which unknown machines may register. `open`: all. `window`: only while an administrator keeps pairing
    open (`brewos-relay pairing open`). `closed`: none."""
    new_machines_per_network: int = 500
    """Unknown machines that may register within a day from one network: an IPv4 address, or an IPv6 /64. The
    next wider network may register twice as many, and so on."""
    machines_per_account: int = 50
    """Machines that one account may have, in any role. Pairing, shares and transfers beyond that are refused.
    Accounts that already have more keep them."""

    # Web app
    web_dist_path: Path | None = None
    """Folder of a built web app to serve. Not set: the relay's own pages."""
    allowed_origins: tuple[str, ...] = ()
    """Other origins whose pages may connect as clients and send state-changing requests, such as
    `https://app.example.com`. For apps: `capacitor://localhost`, `ionic://localhost` or
    `tauri://localhost`."""

    # Notifications
    push: bool = True
    """Send notifications to browsers that subscribe to them, through their push services."""
    push_contact: str | None = None
    """Address of the operator for push services: `mailto:` with an e-mail address, or an `https` URL. Some
    services require it. Not set: the public URL, if it is `https`."""
    push_offline_s: float = 12 * 3600.0
    """How long a machine must be offline until its users are notified. 0: they are not."""

    # Firmware
    firmware_releases: str | None = None
    """Source of the firmware releases that the BrewOS app shows: an `https` URL with a list in the format of
    GitHub's API, such as `https://api.github.com/repos/OWNER/NAME/releases`, or a folder of JSON files with
    the same content. Not set: none."""

    # Metrics
    metrics_token: str = field(default="", repr=False)
    """Bearer token for `GET /metrics`, of at least 16 characters. Not set: the public port serves no
    metrics."""
    metrics_port: int | None = None
    """A separate port for `GET /metrics`, without TLS. It requires a token only if
    `BREWOS_RELAY_METRICS_TOKEN` is set. 0: any free port."""
    metrics_host: str = "127.0.0.1"
    """Address of the metrics port."""

    # Storage
    data_dir: Path = Path("data")
    """Folder of the registry's SQLite file `brewos-relay.db`, and of the local CA and its certificate."""
    database_url: str = field(default="", repr=False)  # it may hold a password
    """SQLAlchemy URL of the registry. Empty: the SQLite file in the data folder."""
    database_pool: int = 8
    """PostgreSQL connections that one server opens at most, from 2 to 100. Half of them are for writes."""

    # Several instances
    bus: str = field(default="", repr=False)  # it may hold a password
    """URL of the Redis or Valkey server that joins several instances, such as
    `redis://:password@host:6379/0`; `rediss` for TLS, or `unix:///run/redis.sock`. Empty: this instance is
    the only one. All instances need the same registry and the same keys for tokens."""
    instance: str = ""
    """Name of this instance in logs and metrics; the relay adds some letters. Empty: the host name."""

    # Compiled build
    compiled: bool = True
    """Use the compiled modules of a compiled build. `false`: interpret their source."""

    # Logging
    log_level: str = "info"
    """Lowest level to log: `debug`, `info`, `warning`, `error` or `critical`."""
    log_format: str = "auto"
    """`console`: readable lines. `json`: one JSON object per line. `auto`: `console` on a terminal, `json`
    otherwise."""
    limits: ServerLimits = field(default_factory=ServerLimits)
    """The limits. Each of them is a setting of its own."""

    def __post_init__(self) -> None:
        """Check settings that depend on each other. Raises SettingsError."""
        for wrong, problem in (
            (
                self.tls_cert is not None and self.tls_key is None,
                "TLS_CERT requires BREWOS_RELAY_TLS_KEY",
            ),
            (
                self.tls_key is not None and self.tls_cert is None,
                "TLS_KEY requires BREWOS_RELAY_TLS_CERT",
            ),
            (
                self.tls_self_signed and self.tls_cert is not None,
                "TLS_CERT and BREWOS_RELAY_TLS_SELF_SIGNED cannot be combined; remove one of them",
            ),
            (
                self.redirect_port is not None and not self.speaks_tls,
                "REDIRECT_PORT requires BREWOS_RELAY_TLS_CERT or BREWOS_RELAY_TLS_SELF_SIGNED",
            ),
            (
                self.redirect_port is not None and self.redirect_port == self.port != 0,
                f"REDIRECT_PORT is {self.redirect_port}, the same as BREWOS_RELAY_PORT; choose another port",
            ),
            (
                self.proxy_protocol and not self.trusted_proxies,
                "PROXY_PROTOCOL requires BREWOS_RELAY_TRUSTED_PROXIES, the proxies that send the header",
            ),
            (
                self.oidc_issuer is not None and not (self.oidc_audiences or self.oidc_client_id),
                (
                    "OIDC_ISSUER requires BREWOS_RELAY_OIDC_CLIENT_ID for the button on the sign-in page, or"
                    " BREWOS_RELAY_OIDC_AUDIENCE, the audiences of tokens to accept"
                ),
            ),
            (
                self.oidc_issuer is None
                and bool(self.oidc_audiences or self.oidc_jwks_url or self.oidc_client_id),
                (
                    "OIDC_CLIENT_ID, BREWOS_RELAY_OIDC_AUDIENCE and BREWOS_RELAY_OIDC_JWKS_URL require"
                    " BREWOS_RELAY_OIDC_ISSUER"
                ),
            ),
            (
                not self.oidc_client_id and bool(self.oidc_client_secret or self.oidc_label),
                "OIDC_CLIENT_SECRET and BREWOS_RELAY_OIDC_LABEL require BREWOS_RELAY_OIDC_CLIENT_ID",
            ),
            (
                bool(self.google_client_secret) and not self.google_client_ids,
                "GOOGLE_CLIENT_SECRET requires GOOGLE_CLIENT_ID",
            ),
            (
                self.public_url is None and bool(self.google_client_secret),
                "GOOGLE_CLIENT_SECRET requires PUBLIC_URL, the address that Google sends browsers back to",
            ),
            (
                self.public_url is None and bool(self.oidc_client_id),
                "OIDC_CLIENT_ID requires PUBLIC_URL, the address that the issuer sends browsers back to",
            ),
            (
                0 < len(self.metrics_token) < MIN_METRICS_TOKEN_CHARS,
                (
                    f"METRICS_TOKEN must have at least {MIN_METRICS_TOKEN_CHARS} characters, got"
                    f" {len(self.metrics_token)}; `brewos-relay secret` generates one"
                ),
            ),
            (
                bool(self.facebook_app_id) != bool(self.facebook_app_secret),
                "FACEBOOK_APP_ID and BREWOS_RELAY_FACEBOOK_APP_SECRET must be set together",
            ),
        ):
            if wrong:
                raise SettingsError(f"{PREFIX}{problem}")

    @property
    def speaks_tls(self) -> bool:
        """Whether the port speaks TLS."""
        return self.tls_self_signed or self.tls_cert is not None

    def secrets(self) -> list[str]:
        """List the secrets of the settings, which the log must not contain."""
        return [
            *parse_texts(self.jwt_secret),
            *filter(
                None,
                (
                    self.facebook_app_secret,
                    self.google_client_secret,
                    self.oidc_client_secret,
                    self.metrics_token,
                ),
            ),
            *_passwords_in(self.database_url),
            *_passwords_in(self.bus),
        ]

    def resolved_database_url(self) -> str:
        """Return the URL of the registry. Raises SettingsError if `data_dir` cannot be part of a URL."""
        if self.database_url:
            return self.database_url
        path = (self.data_dir / DATABASE_FILE).as_posix()
        if "?" in path or "%" in path:
            raise SettingsError(
                f"DATA_DIR must not contain '?' or '%', got {str(self.data_dir)!r}; choose another folder"
            )
        return f"sqlite:///{path}"

    def require_jwt_secrets(self) -> list[str]:
        """Return the secrets, the signing one first. Raises SettingsError if one is too short.

        Raises SettingsError, too, if there are neither secrets nor `jwt_key_files`.
        """
        try:
            self.jwt_secret.encode()
        except UnicodeEncodeError:
            raise _secret_problem("is not UTF-8") from None
        secrets = list(parse_texts(self.jwt_secret))
        for place, secret in enumerate(secrets, start=1):
            if (size_bytes := len(secret.encode())) < MIN_JWT_SECRET_BYTES:
                which = f" (number {place} of {len(secrets)})" if len(secrets) > 1 else ""
                raise _secret_problem(f"has {size_bytes} bytes{which}")
        if not secrets and not self.jwt_key_files:
            raise _secret_problem("is not set")
        return secrets


SECRET_SETTINGS: Final = frozenset(each.name for each in fields(Settings) if not each.repr)
"""The settings that are secrets, or may hold one: their fields are not part of the `repr`."""


def _passwords_in(url: str) -> list[str]:
    """Find the passwords in the URL of a database or bus, percent-encoded and decoded."""
    written = [found[1] for pattern in _PASSWORDS if (found := pattern.search(url))]
    query = parse_qs(url.rpartition("?")[2])
    named = [each for name in _PASSWORD_NAMES for each in query.get(name, ())]
    return list(dict.fromkeys([*(form for each in written for form in (each, unquote(each))), *named]))


def _secret_problem(problem: str) -> SettingsError:
    return SettingsError(
        f"JWT_SECRET {problem}: it must be a text of at least {MIN_JWT_SECRET_BYTES} bytes."
        " `brewos-relay secret` generates one; put it into the environment or into .env"
    )
