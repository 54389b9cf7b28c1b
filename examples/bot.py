"""A bot: it switches a machine off that has been on for too long.

    python bot.py https://relay.example BRW-12AB34CD session.json --after-minutes 90

`session.json` is made by signing in once, with a link from `brewos-relay user invite`:

    python bot.py https://relay.example BRW-12AB34CD session.json --invite-token TOKEN

From then on the bot lives on it, for as long as it runs at least once a month.
"""

import argparse
import math

import trio

from brewos_relay.client import App, NothingKnown, SessionTokens, open_app


async def watch(app: App, *, after_s: float, retry_s: float = 60.0) -> None:
    """Switch the machine off whenever it has been on for `after_s`."""
    on_since_s = math.inf
    while True:
        due_s = on_since_s + after_s
        with trio.move_on_at(due_s):
            # What is said tells that something may have changed; what is known tells what it is.
            await anext(app)
            try:
                machine = (await app.state()).status.get("machine", {})
            except NothingKnown:
                continue
            if machine.get("mode") != "on":
                on_since_s = math.inf
            elif on_since_s == math.inf:
                on_since_s = trio.current_time()
        if trio.current_time() >= due_s:
            outcome = await app.command("set_mode", mode="standby", timeout_s=10)
            print(f"switching it off: {outcome.fate}", flush=True)
            # If that did not work, try again in a while; if it did, the machine says that it is off.
            on_since_s = trio.current_time() - after_s + retry_s


async def main(url: str, device_id: str, session_file: str, after_s: float, invite_token: str | None) -> None:
    """Sign in if need be, and watch until Ctrl-C, or until the session has ended."""
    tokens = SessionTokens(url, session_file)
    if invite_token is not None:
        await tokens.sign_in("/api/auth/invite", token=invite_token)
    async with open_app(url, tokens, device_id) as app:
        await watch(app, after_s=after_s)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Switch a machine off that has been on for too long.")
    parser.add_argument("url")
    parser.add_argument("device_id")
    parser.add_argument("session_file")
    parser.add_argument("--after-minutes", type=float, default=90.0)
    parser.add_argument("--invite-token")
    given = parser.parse_args()
    try:
        trio.run(
            main, given.url, given.device_id, given.session_file, given.after_minutes * 60, given.invite_token
        )
    except* KeyboardInterrupt:
        pass
