"""An OpenID Connect issuer and a Facebook Graph on a port of this machine: real HTTP, keys of its own."""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

DISCOVERY_PATH: Final = "/.well-known/openid-configuration"
KEYS_PATH: Final = "/keys"
AUTHORIZATION_PATH: Final = "/authorize"
TOKEN_PATH: Final = "/token"
CLIENT_ID: Final = "relay-client-id"
CLIENT_SECRET: Final = "relay client:secret/ä"
APP_ID: Final = "1234567890"
APP_SECRET: Final = "app-secret-0123456789"

_JOIN_S: Final = 5


class IssuerKey:
    """A key pair of the issuer; making an RSA one takes a while, so tests share them."""

    def __init__(self, algorithm: str, key_id: str) -> None:
        self.algorithm = algorithm
        self.key_id = key_id
        self.private: Any = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048)
            if algorithm == "RS256"
            else ec.generate_private_key(ec.SECP256R1())
        )

    def jwk(self) -> dict[str, Any]:
        """Give the public half as a JSON Web Key."""
        maker: Any = jwt.get_algorithm_by_name(self.algorithm)
        public: dict[str, Any] = maker.to_jwk(self.private.public_key(), as_dict=True)
        return {**public, "kid": self.key_id, "alg": self.algorithm, "use": "sig"}


class Answer:
    """A wrong response at a path: `body` is bytes or JSON, `delay_s` delays it."""

    def __init__(
        self, body: object = None, *, status: int = 200, delay_s: float = 0.0, location: str | None = None
    ) -> None:
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status = status
        self.delay_s = delay_s
        self.location = location


class Issuer:
    """The issuer: `url` is its name, `keys` are its public keys, and `asked` counts the requests by path.

    `answers` replaces the right responses, by path. `people` are the users of its Facebook side, by access
    token. `metadata` is added to the discovery document, and `told` to the ID tokens for codes. `secret` is
    that of the client; None makes it a public one.
    """

    def __init__(self, port: int, keys: list[IssuerKey]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.keys = list(keys)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.queries: list[dict[str, str]] = []
        self.people: dict[str, dict[str, Any]] = {}
        self.metadata: dict[str, Any] = {}
        self.told: dict[str, Any] = {}
        self.secret: str | None = CLIENT_SECRET
        self.codes: dict[str, dict[str, str]] = {}
        self.released = threading.Event()

    @property
    def keys_url(self) -> str:
        """Where its keys are."""
        return self.url + KEYS_PATH

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Return the claims of an ID token. None leaves a claim out."""
        now_s = int(time.time())
        content: dict[str, Any] = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "sub": "ada-at-the-issuer",
            "iat": now_s,
            "exp": now_s + 3600,
            "email": "ada@example.org",
            "email_verified": True,
            "name": "Ada",
            "picture": "https://pictures.example/ada.png",
            **changed,
        }
        return {name: value for name, value in content.items() if value is not None}

    def token(
        self, *, key: IssuerKey | None = None, headers: dict[str, Any] | None = None, **changed: Any
    ) -> str:
        """Sign an ID token, with the first public key unless `key` is given."""
        signing = key or self.keys[0]
        return jwt.encode(
            self.claims(**changed),
            signing.private,
            algorithm=signing.algorithm,
            headers={"kid": signing.key_id, **(headers or {})},
        )

    def answer(self, path: str, query: dict[str, str]) -> Answer:
        """Return the right response for a path."""
        self.asked.append(path)
        self.queries.append(query)
        if path in self.answers:
            return self.answers[path]
        if path == DISCOVERY_PATH:
            endpoints = {
                "jwks_uri": self.keys_url,
                "authorization_endpoint": self.url + AUTHORIZATION_PATH,
                "token_endpoint": self.url + TOKEN_PATH,
            }
            return Answer({"issuer": self.url, **endpoints, **self.metadata})
        if path == AUTHORIZATION_PATH:
            return Answer(b"<!doctype html>", status=302, location=self.authorize(query))
        if path == KEYS_PATH:
            return Answer({"keys": [key.jwk() for key in self.keys]})
        if path == "/debug_token":
            return self._debug_token(query)
        if path == "/me":
            person = self.people.get(query.get("access_token", ""))
            return Answer(person) if person is not None else _graph_error()
        return Answer({"error": "not found"}, status=404)

    def authorize(self, query: dict[str, str]) -> str:
        """Sign the user in and return where the browser goes next, with a code."""
        code = secrets.token_urlsafe(8)
        self.codes[code] = query
        back = {"code": code, "state": query["state"], "iss": self.url}
        return f"{query['redirect_uri']}?{urlencode(back)}"

    def post(self, path: str, form: dict[str, str], authorization: str | None) -> Answer:
        """Return the right response to a form: the ID token for a code, once."""
        self.asked.append(path)
        if path in self.answers:
            return self.answers[path]
        client, secret = form.get("client_id"), form.get("client_secret")
        if authorization is not None:
            pair = base64.b64decode(authorization.removeprefix("Basic ")).decode().split(":")
            client, secret = map(unquote_plus, pair)
        if client != CLIENT_ID or secret != self.secret:
            return Answer({"error": "invalid_client"}, status=401)
        asked = self.codes.pop(form["code"], None)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if (
            asked is None
            or form["grant_type"] != "authorization_code"
            or asked["code_challenge_method"] != "S256"
            or asked["code_challenge"] != encode_part(digest)
            or asked["redirect_uri"] != form["redirect_uri"]
        ):
            return Answer({"error": "invalid_grant"}, status=400)
        return Answer({"id_token": self.token(nonce=asked["nonce"], **self.told), "token_type": "Bearer"})

    def _debug_token(self, query: dict[str, str]) -> Answer:
        if query.get("access_token") != f"{APP_ID}|{APP_SECRET}":
            return _graph_error()
        person = self.people.get(query.get("input_token", ""))
        if person is None:
            return Answer({"data": {"is_valid": False, "error": {"code": 190}}})
        return Answer({"data": {"is_valid": True, "app_id": APP_ID, "type": "USER", "user_id": person["id"]}})


def _graph_error() -> Answer:
    return Answer({"error": {"message": "Invalid OAuth access token", "code": 190}}, status=400)


@contextmanager
def open_issuer(*keys: IssuerKey) -> Iterator[Issuer]:
    """Open an issuer that shows these keys, for the time of the block.

    **Owns:** a thread that listens, and one for each connection; leaving the block ends them.
    """

    class Reply(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            self._send(issuer.answer(parts.path, dict(parse_qsl(parts.query))))

        def do_POST(self) -> None:
            form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self._send(issuer.post(self.path, form, self.headers["Authorization"]))

        def _send(self, answer: Answer) -> None:
            if answer.delay_s:
                issuer.released.wait(answer.delay_s)
            try:
                self.send_response(answer.status)
                if answer.location is not None:
                    self.send_header("Location", answer.location)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)
            except OSError:
                pass  # the client has disconnected

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False

    with Server(("127.0.0.1", 0), Reply) as server:
        issuer = Issuer(server.server_address[1], list(keys))
        listening = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        listening.start()
        try:
            yield issuer
        finally:
            issuer.released.set()
            server.shutdown()
            listening.join(_JOIN_S)


def encode_part(content: object) -> str:
    """Give a part of a token as no library would make it; bytes are taken as they are."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
