"""A bot that switches off a machine that has been on for too long.

    python bot.py https://relay.example BRW-12AB34CD session.json --after-minutes 90

Sign in once to create `session.json`, with the token of a link from `brewos-relay user invite`:

    python bot.py https://relay.example BRW-12AB34CD session.json --invite-token TOKEN

The session stays valid as long as the bot runs at least once a month.
"""

import argparse
import math

import trio

from brewos_relay.client import App, NothingKnown, SessionFile, open_app


async def watch(app: App, *, after_s: float, retry_s: float = 60.0) -> None:
    """Switch the machine off whenever it has been on for `after_s`."""
    on_since_s = math.inf
    while True:
        due_s = on_since_s + after_s
        with trio.move_on_at(due_s):
            # A message means that the state may have changed; `state` returns the complete state.
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
            # Try again after a while, unless the machine reports that it is off.
            on_since_s = trio.current_time() - after_s + retry_s


async def main(url: str, device_id: str, session_file: str, after_s: float, invite_token: str | None) -> None:
    """Sign in if a token is given, and watch until Ctrl-C or the end of the session."""
    tokens = SessionFile(url, session_file)
    if invite_token is not None:
        await tokens.sign_in("/api/auth/invite", token=invite_token)
    async with open_app(url, tokens, device_id) as app:
        await watch(app, after_s=after_s)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Switch off a machine that has been on for too long.")
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
