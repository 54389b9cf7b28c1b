"""The tutorial "The first hour": from `pip install .` to two shots that are compared, on phones in Chromium.

The commands are those of the page. Only the port, the installer and the speed of the machine are replaced.
With BREWOS_RELAY_SCREENSHOTS=FOLDER, the pictures of the page are written there (`nox -s screenshots`).
"""

import itertools
import json
import os
import re
import shutil
import ssl
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from brewos_relay.auth.tokens import KeyRing
from brewos_relay.client import open_app
from brewos_relay.server.push_watcher import LOOK_EVERY_S
from support.chromium import Page, needs_browser, open_page
from support.pages import DOCS, ROOT, read
from support.phone import PICTURES, Phone, as_phone, open_other_phone
from support.ports import free_port
from support.push_service import SHOWN, SUBSCRIBING, PushService, open_push_service
from support.terminals import Terminal, open_terminal

TUTORIAL: Final = read("tutorial/first-hour.md")
BLOCK: Final = re.compile(
    r"^<!-- not run: test_first_hour runs it in terminal (\d) -->\n```console\n(.*?)^```$", re.M | re.S
)
PICTURE: Final = re.compile(r"!\[[^\]]*\]\(\.\./images/first-hour/([\w-]+)\.webp\)")
MOST_BYTES: Final = 40_000
DEADLINE_S: Final = 100.0 if PICTURES is None else 280.0
"""With pictures, the machine is as fast as on the page, and its shots are full ones."""
SPEED: Final = "60" if PICTURES is None else "6"
SHOWN_S: Final = 0 if PICTURES is None else 17
"""How long a shot has run in its picture."""
SHOT_S: Final = 3.0
"""How long a shot lasts here, unless there are pictures. The relay records shots from 2 s on."""

URL: Final = "https://coffee.local:8443"
MACHINE: Final = "BRW-51000001"
BREW_C: Final = "Number(document.querySelector('#gauge-brew .figure').textContent)"
BESIDE_FIELDS: Final = """[...document.querySelectorAll('#share label')].every((one) =>
  one.getBoundingClientRect().top > one.control.getBoundingClientRect().top)"""
PASSWORD: Final = "correct horse battery"
STEPS: Final = (
    "trust",
    "welcome",
    "password",
    "pair",
    "machine",
    "invite",
    "share",
    "accept",
    "shot",
    "notifications",
    "compare",
)
"""The steps that have a picture, in the order of the page and of the test."""

# The push service of the test is on this computer, which no browser's service is.
LOCAL_PUSH_SERVICE: Final = """
from brewos_relay import outbound

outbound.is_public = lambda address: True
"""


class Album:
    """The pictures of the steps."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    async def take(self, phone: Phone, step: str, *, top: str | None = None) -> None:
        """Take a picture of a step, if there is a folder for it. The element `top` is at its top."""
        self.taken.append(step)
        if PICTURES is not None:
            await phone.take_picture(Path(PICTURES) / "first-hour" / f"{step}.webp", top)


class Computer:
    """Runs the commands of the page in terminals, in an environment of its own."""

    def __init__(self, folder: Path, nursery: trio.Nursery, service: PushService) -> None:
        self.port = free_port()
        self._folder = folder
        self._nursery = nursery
        self._blocks = iter(BLOCK.findall(TUTORIAL))
        self._numbers = itertools.count(1)
        (folder / "project").mkdir()
        (folder / "patches").mkdir()
        (folder / "patches" / "sitecustomize.py").write_text(LOCAL_PUSH_SERVICE)
        self._environment = {"PATH": f"{folder}/project/.venv/bin:{os.environ['PATH']}", "HOME": str(folder)}
        # The installer has settings and a cache in the environment.
        self._installing = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        self._serving = {
            "PYTHONPATH": str(folder / "patches"),
            "SSL_CERT_FILE": str(service.server.cert_file),
        }
        self._replacements = {
            "python3 -m venv .venv": make_environment(),
            "python3 -m pip install .": install_project(),
            f"{URL} ": f"{URL} --port {self.port} ",
            "--speed 6": f"--speed {SPEED}",
        }

    @property
    def relay_folder(self) -> Path:
        return self._folder / "coffee"

    async def run_next(self, number: int) -> Terminal:
        """Run the next block of the page, which is for this terminal. Its last command may go on."""
        terminal, code = next(self._blocks)
        assert int(terminal) == number
        for old, new in self._replacements.items():
            code = code.replace(old, new)
        *lines, last = code.splitlines(keepends=True)
        goes_on = last.startswith(("brewos-relay serve", "brewos-relay simulate"))
        code = "".join(lines) + (f"exec {last}" if goes_on else last)
        ran = await open_terminal(
            self._nursery,
            ["bash", "-euo", "pipefail", "-c", code],
            folder=self.relay_folder if "serve" in last else self._folder / "project",
            env=self._environment_for(last),
            output=self._folder / f"output-{next(self._numbers)}",
        )
        if not goes_on:
            assert await ran.wait() == 0, ran.printed()
        return ran

    def _environment_for(self, command: str) -> dict[str, str]:
        if "install" in command:
            return self._installing
        return {**self._environment, **(self._serving if "serve" in command else {})}


def make_environment() -> str:
    """Return the command that makes a virtual environment, the faster one if it is there."""
    return (
        f"'{uv}' venv -q --python '{sys.executable}' .venv"
        if (uv := shutil.which("uv"))
        else (f"'{sys.executable}' -m venv .venv")
    )


def install_project() -> str:
    """Return the command that installs the project."""
    if uv := shutil.which("uv"):
        return f"'{uv}' pip install -q --python .venv/bin/python '{ROOT}'"
    return f"python3 -m pip install -q '{ROOT}'"


async def stop_shots(computer: Computer) -> None:
    """Stop each shot of the machine once it is long enough to be recorded."""
    variables = dict(re.findall(r"^(\w+)=(.*)$", (computer.relay_folder / ".env").read_text(), re.M))
    token = KeyRing([variables["JWT_SECRET"]]).issue(user_id="test", email="test@example.org", devices="*")
    trusted = ssl.create_default_context(cafile=computer.relay_folder / "data" / "local-ca" / "ca.crt")
    url = f"https://127.0.0.1:{computer.port}"
    async with open_app(url, token, MACHINE, ssl_context=trusted) as app:
        began_at_s: float | None = None
        async for message in app:
            brewing = message.get("machine", {}).get("isBrewing")
            if brewing is True and began_at_s is None:
                began_at_s = trio.current_time()
            elif brewing is False:
                began_at_s = None
            if began_at_s is not None and trio.current_time() > began_at_s + SHOT_S:
                await app.command("brew_stop", timeout_s=5)
                began_at_s = None


async def sign_in(phone: Phone, link: str, album: Album | None = None) -> None:
    """Open a one-time link and set a password."""
    await phone.page.go(link)
    await phone.page.see("Welcome")
    if album:
        await album.take(phone, "welcome")
    await phone.tap("#accept")
    await phone.write("#chosen", PASSWORD)
    if album:
        await album.take(phone, "password")
    await phone.tap("#choose button")
    await phone.page.see("You have no machines yet.")


async def switch_off_and_on(phone: Phone, service: PushService) -> tuple[str, dict[str, Any]]:
    """Switch the machine off and on until the push service has a message; return its path and content."""
    while True:
        await phone.tap("#mode-standby")
        await phone.page.wait_for("document.querySelector('#now').textContent === 'Standby'")
        await trio.sleep(LOOK_EVERY_S + 0.5)  # a busy relay may still miss it
        await phone.tap("#mode-on")
        with trio.move_on_after(15):
            return await service.next()


async def deliver(page: Page, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Give a message to the service worker; return the notifications that are shown then.

    A headless browser on a busy computer may lose a notification while it starts to keep a list of them. Push
    services deliver again as well, and the tag keeps one notification.
    """
    message = {
        "origin": URL,
        "registrationId": page.registrations[f"{URL}/console"],
        "data": json.dumps(content),
    }
    while True:
        await page.call("ServiceWorker.deliverPushMessage", **message)
        with trio.move_on_after(5):
            return list(await page.wait_for(f"{SHOWN}.then((all) => all.length > 0 && all)"))


async def copied(phone: Phone, button: str) -> str:
    """Copy a link as a user does, and return it."""
    await phone.tap(button)
    return str(await phone.page.wait_for("navigator.clipboard.readText().then((text) => text)"))


@needs_browser
@pytest.mark.timeout(DEADLINE_S + 10)
async def test_from_the_installation_to_two_compared_shots(tmp_path: Path) -> None:
    """Follow the page."""
    album = Album()
    with trio.fail_after(DEADLINE_S):
        async with open_push_service(tmp_path) as service, trio.open_nursery() as nursery:
            computer = Computer(tmp_path, nursery, service)
            await computer.run_next(1)
            ready = await computer.run_next(1)
            served = await computer.run_next(1)
            hosts = f"MAP coffee.local:8443 127.0.0.1:{computer.port}"
            async with open_page(hosts=hosts) as page:
                await walk(page, computer, service, album, nursery, ready=ready, served=served)
            nursery.cancel_scope.cancel()
    assert tuple(album.taken) == STEPS


async def walk(
    page: Page,
    computer: Computer,
    service: PushService,
    album: Album,
    nursery: trio.Nursery,
    *,
    ready: Terminal,
    served: Terminal,
) -> None:
    """Do what the page says, on two phones."""
    ada = await as_phone(page)
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite", "notifications"]
    await page.call("Browser.grantPermissions", permissions=permissions, origin=URL)
    await page.call("ServiceWorker.enable")
    subscribing = SUBSCRIBING.replace("SUBSCRIPTION", json.dumps(service.subscription("/ada")))
    await page.call("Page.addScriptToEvaluateOnNewDocument", source=subscribing)
    await served.wait_for("is ready on")

    await page.go(f"{URL}/ca")
    await page.see(ready.found(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}"))
    await album.take(ada, "trust")
    await sign_in(ada, ready.found(r"https://\S+/login#invite=\S+"), album)

    simulated = await computer.run_next(2)
    await page.go((await simulated.wait_for(rf"https://\S+/pair\?id={MACHINE}&token=\S+"))[0])
    await ada.write("#name", "Kitchen")
    await album.take(ada, "pair")
    await ada.tap("#scanned button")
    await ada.tap("#done a")
    await page.wait_for(f"{BREW_C} > 50")
    await album.take(ada, "machine")
    if PICTURES is None:
        nursery.start_soon(stop_shots, computer)

    await ada.tap("#to-admin")
    await ada.write("#invite-email", "ben@example.com")
    await ada.tap("#invite button")
    await page.see("This link signs in ben@example.com")
    await album.take(ada, "invite", top="#invite-title")
    for_ben = await copied(ada, "#invited-copy")
    await page.go(f"{URL}/machine/{MACHINE}")
    await ada.tap("#share button")
    await page.wait_for("document.querySelector('#share-qr').src.startsWith('data:')")
    assert await page.run(BESIDE_FIELDS), "each label of the form is beside its field"
    await album.take(ada, "share", top="#sharing")
    shared = await copied(ada, "#share-copy")

    async with open_other_phone(page) as ben:
        await sign_in(ben, for_ben)
        await ben.page.go(shared)
        await ben.page.see("Invitation")
        await album.take(ben, "accept")
        await ben.tap("#scanned button")
        await ben.tap("#done a")
        running = "document.querySelector('#shot-when').textContent === 'running'"
        await ben.page.wait_for(
            f"{running} && Number(document.querySelector('#shot-time').textContent) > {SHOWN_S}"
        )
        await album.take(ben, "shot", top="#shot-title")
        assert ben.page.problems == []

    await ada.tap("#to-settings")
    await ada.tap("#push-on")
    await page.see("Ready to brew")
    await album.take(ada, "notifications", top="#push")
    await page.go(f"{URL}/machine/{MACHINE}")
    await page.see("ben@example.com")
    await page.wait_for("document.querySelector('#shot-when').textContent !== 'running'")
    path, content = await switch_off_and_on(ada, service)
    assert path == "/ada"
    [shown] = await deliver(page, content)
    assert (shown["title"], shown["id"]) == ("Kitchen: Ready to brew", MACHINE)

    # A shot is recorded a few seconds after its end.
    await page.wait_for("document.querySelectorAll('#recent-shots li').length >= 2")
    await ada.tap("#to-shots")
    await ada.tap("#shots tr:nth-child(2) input")
    await page.see("2 shots compared")
    await page.wait_for("!!document.querySelector('#curves canvas')")
    await album.take(ada, "compare", top="#comparison")
    assert page.problems == []


def test_page_has_the_pictures_of_the_test_in_its_order() -> None:
    assert tuple(PICTURE.findall(TUTORIAL)) == STEPS
    files = sorted((DOCS / "images" / "first-hour").iterdir())
    assert [file.name for file in files] == sorted(f"{step}.webp" for step in STEPS)
    assert [file.name for file in files if file.stat().st_size > MOST_BYTES] == []


def test_every_command_of_the_page_is_run() -> None:
    assert TUTORIAL.count("```console") == len(BLOCK.findall(TUTORIAL))
