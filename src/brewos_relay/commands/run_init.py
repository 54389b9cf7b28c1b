"""The work of `brewos-relay init`."""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from brewos_relay.auth.secrets import generate_secret, generate_secret_token, hash_secret
from brewos_relay.commands.failures import Failed
from brewos_relay.commands.output import local_time
from brewos_relay.errors import SettingsError
from brewos_relay.registry.accounts import has_administrator
from brewos_relay.registry.database import Database
from brewos_relay.registry.emails import normal_email
from brewos_relay.registry.engine import database_file
from brewos_relay.registry.invites import add_invite, open_admin_invite
from brewos_relay.server.from_settings import public_host
from brewos_relay.server.local_ca import LocalCa, replace_file
from brewos_relay.server.self_signed import ca_problem, ensure_self_signed, own_names, replace_ca
from brewos_relay.server.sockets import LOW_PORTS_ADVICE, find_port_problem
from brewos_relay.settings import Found, Settings, find_settings, load_settings, variable_names
from brewos_relay.settings.dotenv_file import with_settings
from brewos_relay.settings.parsing import parse_public_url
from brewos_relay.settings.sources import read_text
from brewos_relay.vocabulary import now_ms

_INVITE_MS: Final = 7 * 86_400_000
_LOOPBACK_PROXY: Final = "127.0.0.1,::1"
_HTTPS_PORT: Final = 443
_HTTP_PORT: Final = 80
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(kw_only=True)
class Setup:
    """The set-up of a relay.

    `found` are the settings that have a value already, `chosen` the ones to write.
    """

    env_file: Path
    found: Mapping[str, Found]
    options: Mapping[str, str]
    behind_proxy: bool
    secret_file: Path | None
    new_ca: bool
    asks: bool
    replaces: bool
    settings: Settings = field(default_factory=Settings)
    chosen: dict[str, str] = field(default_factory=dict, repr=False)
    notes: list[str] = field(default_factory=list)
    email: str | None = None
    link: str | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        options: Mapping[str, str],
        *,
        env_file: Path,
        behind_proxy: bool,
        secret_file: Path | None,
        new_ca: bool,
        asks: bool,
        replaces: bool,
    ) -> "Setup":
        """Read the present settings. Raises SettingsError."""
        if env_file.is_dir():
            raise SettingsError(
                f"{env_file} is a folder, such as a virtual environment; change to another folder"
            )
        found = {name: each for name, each in find_settings(dotenv_path=env_file).items() if each is not None}
        return cls(
            env_file=env_file,
            found=found,
            options=options,
            behind_proxy=behind_proxy,
            secret_file=secret_file,
            new_ca=new_ca,
            asks=asks,
            replaces=replaces,
        )

    @property
    def is_new(self) -> bool:
        """Whether the folder has no secret yet."""
        has_file = self.secret_file is not None and self.secret_file.exists()
        return not has_file and not {"jwt_secret", "jwt_key_files"} & set(self.found)

    def ask(self, email: str | None) -> None:
        """Decide everything, and write nothing. Raises SettingsError or UsageError."""
        if self.asks and self.is_new:
            click.echo("Set up a relay in this folder. Ctrl-C ends this, and changes nothing.\n", err=True)
        self._choose_settings()
        self.settings = self._load()
        if self.is_new:
            if self.secret_file is None:
                self.chosen["jwt_secret"] = generate_secret()
        elif self.secret_file is None:
            self.settings.require_jwt_secrets()
        self._check_ports()
        if self.new_ca and not self.settings.tls_self_signed:
            raise SettingsError("--new-ca needs a relay with a certificate of its local CA, and an https URL")
        if self.new_ca and self.asks and LocalCa.load(self.settings.data_dir) is not None:
            click.confirm("Replace the local CA? Each phone must trust the new one", abort=True, err=True)
        self._choose_administrator(email)

    def _load(self) -> Settings:
        return load_settings(environ=os.environ, dotenv_path=self.env_file, **self.chosen)

    def _choose_settings(self) -> None:
        given = dict(self.options)
        if "public_url" not in given and "public_url" not in self.found and self.is_new:
            given["public_url"] = self._ask_url()
        if self.is_new or self.behind_proxy:
            url = given.get("public_url") or self.found["public_url"].text
            for name, text in self._defaults(parse_public_url(url), given).items():
                if name not in self.found:
                    self.chosen[name] = text
        for name, text in given.items():
            if self._replaces(name, text):
                self.chosen[name] = text

    def _defaults(self, url: str, given: Mapping[str, str]) -> dict[str, str]:
        """Return the settings of a new relay with this URL, besides those of options."""
        parts = urlsplit(url)
        if self.behind_proxy:
            # In a container, the proxy is elsewhere, and its network is a setting.
            here = {} if "trusted_proxies" in self.found else {"host": "127.0.0.1"}
            return {"trusted_proxies": _LOOPBACK_PROXY, **here}
        if parts.scheme == "http":
            here = {"host": "127.0.0.1"} if parts.hostname in _LOOPBACK else {}
            return {"port": str(parts.port or _HTTP_PORT), **here}
        own = {} if {"tls_cert", "tls_key"} & (set(given) | set(self.found)) else {"tls_self_signed": "true"}
        port = given.get("port") or str(parts.port or _HTTPS_PORT)
        if port == str(_HTTPS_PORT) and "redirect_port" not in given and "redirect_port" not in self.found:
            if find_port_problem("", _HTTP_PORT) == errno.EADDRINUSE:
                self.notes.append(
                    "Port 80 is in use, so http:// addresses will not be redirected to https://."
                )
            else:
                own["redirect_port"] = str(_HTTP_PORT)
        return {"port": port, **own}

    def _replaces(self, name: str, text: str) -> bool:
        """Whether to write an option. Raises Failed if another value must stay."""
        there = self.found.get(name)
        if there is None:
            return True
        if there.text == text:
            return False
        if there.source != str(self.env_file):
            raise Failed(
                f"{there.variable} is {there.text!r} in {there.source}, which goes before {self.env_file}:"
                f" change it there, not to {text!r} here"
            )
        if self.asks:
            question = f"{there.variable} is {there.text} in {there.source}. Replace it by {text}?"
            return click.confirm(question, default=False, err=True)
        if not self.replaces:
            raise Failed(
                f"{there.variable} is {there.text!r} in {there.source}, not {text!r}; replace it with --yes"
            )
        return True

    def _ask_url(self) -> str:
        default = f"https://{own_names()[-1]}"
        if not self.asks:
            if self.replaces:
                return default
            raise click.UsageError("--url is missing: the address of the relay for machines and phones")
        click.echo(
            "Under which address will machines and phones find this computer? Use a name that your router"
            " knows,\nor an address that does not change, such as https://192.168.1.5.",
            err=True,
        )
        return str(click.prompt("URL", default=default, value_proc=_parse_url, err=True))

    def _check_ports(self) -> None:
        """Refuse a new port that is in use. A port that stays may be in use by the relay itself."""
        for name in ("port", "redirect_port"):
            port = getattr(self.settings, name)
            if name in self.chosen and port:
                found = find_port_problem(self.settings.host, port)
                if found == errno.EADDRINUSE:
                    option = f"--{name.replace('_', '-')}"
                    raise Failed(
                        f"port {port} is in use by another program, which `ss -ltnp` shows: end it, choose"
                        f" another port with {option}, or use --behind-proxy"
                    )

    def _choose_administrator(self, email: str | None) -> None:
        url = self.settings.resolved_database_url()
        file = database_file(url)
        if file is None or file.exists():
            with Database.open(url) as database, database.reading() as db:
                if has_administrator(db):
                    if email is not None:
                        self.notes.append("There is an administrator already, so --email has no effect.")
                    return
                invite = open_admin_invite(db, now_ms=now_ms())
            if invite is not None and email is None:
                self.notes.append(
                    f"{invite[0]} was invited as administrator until {local_time(invite[1])}."
                    " --email prints a new link."
                )
                return
        if email is None:
            if not self.asks:
                raise click.UsageError("--email is missing: the address of the first administrator")
            email = click.prompt("Your e-mail address, as administrator", value_proc=_parse_email, err=True)
        self.email = email

    def write(self) -> None:
        """Write everything. A second run completes an interrupted one, as each file is replaced at once."""
        if self.secret_file is not None and not self.secret_file.exists():
            replace_file(self.secret_file, generate_secret().encode() + b"\n")
        self._write_env()
        settings = self.settings
        if settings.tls_self_signed:
            host = public_host(settings)
            if self.new_ca:
                replace_ca(settings.data_dir, host)
            else:
                ensure_self_signed(settings.data_dir, host, needs_ca=True)
        if self.email is not None:
            token = generate_secret_token()
            with Database.open(settings.resolved_database_url()) as database, database.writing() as db:
                at_ms = now_ms()
                try:
                    add_invite(
                        db,
                        email=self.email,
                        token_hash=hash_secret(token),
                        is_admin=True,
                        expires_at_ms=at_ms + _INVITE_MS,
                        now_ms=at_ms,
                    )
                except ValueError as problem:
                    raise Failed(str(problem)) from None
            self.link = f"{self._base}/login#invite={token}"

    def _write_env(self) -> None:
        before = read_text(self.env_file)
        after = before
        for name, text in self.chosen.items():
            # Another name of the setting would go first, or be confusing.
            there = self.found.get(name)
            is_here = there is not None and there.source == str(self.env_file)
            variable = there.variable if there is not None and is_here else variable_names(name)[0]
            try:
                after = with_settings(after, {variable: text})
            except ValueError as problem:
                raise SettingsError(f"{variable} is {text!r}: {problem}") from None
        if after != before or (self.env_file.exists() and self.env_file.stat().st_mode & 0o077):
            replace_file(self.env_file.resolve(), after.encode())

    @property
    def _base(self) -> str:
        scheme = "https" if self.settings.speaks_tls else "http"
        return self.settings.public_url or f"{scheme}://localhost:{self.settings.port}"

    def tell(self, *, then_serves: bool) -> None:
        """Print the result and the next steps."""
        say = click.echo
        settings, url = self.settings, self._base
        say(f"The relay {url} is set up; its settings are in {self.env_file}, readable for you only.")
        for note in self.notes:
            say(note)
        steps: list[str] = []
        ports = {port for port in (settings.port, settings.redirect_port) if port}
        forbidden = sorted(p for p in ports if find_port_problem(settings.host, p) == errno.EACCES)
        if forbidden:
            some = " and ".join(map(str, forbidden))
            steps.append(
                f"Allow programs of this computer to listen on ports from {forbidden[0]} on ({some}):"
                f"\n{_indented(LOW_PORTS_ADVICE.format(port=forbidden[0]))}"
                "\n   Or run the relay as a service: docs/how-to/deploy-with-systemd.md"
            )
        if not then_serves:
            where = "" if self.env_file == Path(".env") else f" with the settings in {self.env_file}"
            steps.append(f"Start the relay{where}:\n     brewos-relay serve")
        if settings.tls_self_signed:
            ca = LocalCa.load(settings.data_dir)
            assert ca is not None
            plain = url.replace("https:", "http:", 1) if settings.redirect_port == _HTTP_PORT else url
            steps.append(
                f"Trust the local CA on each phone and computer. {url}/ca has instructions,\n"
                f"   and {plain}/ca.crt is the file. Compare its SHA-256 fingerprint:\n"
                f"     {ca.fingerprint}"
            )
            if (problem := ca_problem(settings.data_dir, public_host(settings))) is not None:
                say(f"Caution: {problem}.")
        if self.link is not None:
            ends = local_time(now_ms() + _INVITE_MS)
            steps.append(f"Sign in as administrator. This link works once, until {ends}:\n     {self.link}")
        if url.startswith("https:"):
            steps.append(f"Enter {url} as the cloud server of your machine, and scan its QR code.")
            if (urlsplit(url).port or _HTTPS_PORT) != _HTTPS_PORT:
                steps[-1] += (
                    "\n   A machine registers on port 443 only: forward that port to the relay,"
                    " or set the relay up on it."
                )
        say("\nNext steps:")
        for number, step in enumerate(steps, start=1):
            say(f"\n{number}. {step}")


def _indented(text: str) -> str:
    return "\n".join(f"     {line}" for line in text.splitlines())


def _parse_url(text: str) -> str:
    try:
        return parse_public_url(text)
    except ValueError as problem:
        raise click.BadParameter(f"{text!r} is wrong: it must be {problem}") from None


def _parse_email(text: str) -> str:
    try:
        return normal_email(text)
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from None
