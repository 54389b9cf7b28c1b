"""The texts of the pages in the language of the browser."""

import json
from pathlib import Path

import pytest
import trio

from brewos_relay.server.assembly import open_server
from brewos_relay.settings import Settings
from support.chromium import needs_browser, open_page

pytestmark = needs_browser

REFUSALS = {
    "The e-mail address or the password is wrong.": "Die E-Mail-Adresse oder das Passwort ist falsch.",
    "Too many attempts to sign in. Try again in 7 seconds.": (
        "Zu viele Anmeldeversuche. Versuche es in 7 Sekunden noch einmal."
    ),
    "Too many invitations. Try again in a second.": (
        "Zu viele Einladungen. Versuche es in einer Sekunde noch einmal."
    ),
    "This password is not possible: the password has 3 characters: it must have 10 to 200.": (
        "Dieses Passwort ist nicht möglich: das Passwort hat 3 Zeichen: Es muss 10 bis 200 haben."
    ),
    "A name must have 1 to 100 printable characters.": "Ein Name muss 1 bis 100 druckbare Zeichen haben.",
    "Quite new (a.b*).": "Der Server meldet: Quite new (a.b*).",
}


@pytest.mark.parametrize("languages", ["de-AT,de,en", "en-GB,en"])
async def test_page_and_its_scripts_speak_the_language_of_the_browser(tmp_path: Path, languages: str) -> None:
    settings = Settings(host="127.0.0.1", port=0, data_dir=tmp_path, jwt_secret="tests-only-" + "s" * 32)
    is_german = languages.startswith("de")
    with trio.fail_after(60):
        async with open_server(settings) as server, open_page(languages=languages) as page:
            await page.go(server.url + "/login?expired=true")
            await page.see("Deine Sitzung ist beendet." if is_german else "Your session has ended.")
            assert await page.run("document.documentElement.lang") == languages[:2]
            assert await page.run("document.title") == (
                "Anmelden · brewos-relay" if is_german else "Sign in · brewos-relay"
            )
            await page.write("#email", "ada@example.org")
            await page.write("#password", "a wrong password")
            await page.press("#sign-in button")
            english, german = next(iter(REFUSALS.items()))
            await page.see(german if is_german else english)

            for module in ("texts", "format"):
                await page.run(
                    f"import('/console/{module}.js').then((found) => {{ globalThis.{module} = found; }})"
                )
            for english, german in REFUSALS.items():
                shown = await page.run(f"texts.refusalText({json.dumps(english)})")
                assert shown == (german if is_german else english)
            assert await page.run("texts.locale") == languages[:5]
            assert await page.run("format.number(93.25, 1)") == ("93,3" if is_german else "93.3")
            hour_ago = await page.run("format.relativeTime(new Date(Date.now() - 3600500).toISOString())")
            assert hour_ago == ("vor 1 Stunde" if is_german else "1 hour ago")
            assert not [one for one in page.problems if "401" not in one]
