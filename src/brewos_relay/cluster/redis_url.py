"""Redis URLs: the address of a Redis server, with everything that a connection to it needs."""

import ssl
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import trio

from brewos_relay.cluster.plain_stream import PlainStream

DEFAULT_PREFIX: Final = "brewos:"

_EXAMPLES: Final = (
    "a URL like redis://user:password@host:6379/0, rediss://host:6380/0 or unix:///run/redis/redis.sock?db=0"
)
_TLS_OPTIONS: Final = ("ca", "cert", "key")
_PREFIX_CHARACTERS: Final = 100
_DATABASES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis server is, and how to sign in there. Its text has no password."""

    host: str = ""
    port: int = 6379
    path: str = ""
    """The Unix socket; empty for TCP."""
    user: str = "default"
    password: str = field(default="", repr=False)
    db: int = 0
    prefix: str = DEFAULT_PREFIX
    """The start of all keys and channels."""
    tls: bool = False
    ca: str = ""
    """File with the certificate authorities to trust; empty for those of the system."""
    cert: str = ""
    key: str = ""
    """Files with the certificate of this client and its key, for a server that demands one."""

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}?db={self.db}"
        user = f"{self.user}@" if self.user != "default" else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{user}{host}:{self.port}/{self.db}"

    def make_tls_context(self) -> ssl.SSLContext | None:
        """Make the context of a connection, None without TLS.

        Raises OSError or ssl.SSLError, with the name of the file, if a certificate cannot be used.
        """
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=_readable(self.ca) or None)
        if self.cert:
            context.load_cert_chain(_readable(self.cert), _readable(self.key) or None)
        return context

    async def open(self, tls_context: ssl.SSLContext | None) -> trio.abc.Stream:
        """Connect. Raises OSError, ssl.SSLError or trio.BrokenResourceError."""
        if self.path:
            return PlainStream.from_trio(await trio.open_unix_socket(self.path))
        stream = await trio.open_tcp_stream(self.host, self.port)
        if tls_context is None:
            return PlainStream.from_trio(stream)
        encrypted = trio.SSLStream(stream, tls_context, server_hostname=self.host, https_compatible=True)
        try:
            await encrypted.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(encrypted)
            raise
        return encrypted


def parse_redis_url(text: str) -> RedisAddress:
    """Parse the URL of a Redis server.

    The message of a ValueError continues the sentence "NAME is 'text': it must be …". It contains no part of
    the URL that may be a password.
    """
    if "#" in text or any(not " " < each < "\x7f" for each in text):
        raise ValueError(f"{_EXAMPLES}; write special characters of a password as %23, %2F, %3F or %40")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(f"{_EXAMPLES}, with a port from 1 to 65535") from None
    if url.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(_EXAMPLES)
    options = _options_of(url)
    password = unquote(url.password or "")
    if url.username and not password:
        raise ValueError(f"{_EXAMPLES}; there is a user without a password")
    common: dict[str, object] = {
        "user": unquote(url.username or "") or "default",
        "password": password,
        "prefix": _prefix_of(options.get("prefix", DEFAULT_PREFIX)),
    }
    if url.scheme == "unix":
        if url.hostname or port is not None or not url.path.strip("/"):
            raise ValueError(f"{_EXAMPLES}; the path of a Unix socket comes after three slashes")
        return RedisAddress(path=unquote(url.path), db=_db_of(options.get("db", "")), **common)  # type: ignore[arg-type]
    if not url.hostname or port == 0:
        raise ValueError(f"{_EXAMPLES}; there is no host, or the port is 0")
    if url.path.strip("/") and "db" in options:
        raise ValueError(f"{_EXAMPLES}; the number of the database is there twice")
    return RedisAddress(
        host=url.hostname,
        port=port or 6379,
        db=_db_of(options.get("db", "") or url.path.removeprefix("/")),
        tls=url.scheme == "rediss",
        ca=options.get("ca", ""),
        cert=options.get("cert", ""),
        key=options.get("key", ""),
        **common,  # type: ignore[arg-type]
    )


def _options_of(url: SplitResult) -> dict[str, str]:
    known = ("db", "prefix", *(_TLS_OPTIONS if url.scheme == "rediss" else ()))
    options = {}
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name not in known or name in options:
            raise ValueError(f"{_EXAMPLES}; its options are {', '.join(known)}, each at most once")
        options[name] = value
    if "key" in options and "cert" not in options:
        raise ValueError(f"{_EXAMPLES}; the option key needs the option cert")
    return options


def _db_of(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 7 and int(text) < _DATABASES):
        raise ValueError(f"{_EXAMPLES}; the database is a number")
    return int(text)


def _prefix_of(text: str) -> str:
    if not 1 <= len(text) <= _PREFIX_CHARACTERS or any(not " " < each < "\x7f" for each in text):
        raise ValueError(f"{_EXAMPLES}; a prefix has 1 to {_PREFIX_CHARACTERS} visible ASCII characters")
    return text


def _readable(name: str) -> str:
    """Check that a file can be read: the errors of `ssl` do not name it."""
    if name:
        with open(name, "rb"):  # noqa: PTH123 - raises OSError with the name
            pass
    return name
