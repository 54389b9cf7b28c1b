"""Modules of the console that work without a page: decoding, merging, backoff."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec

from support.chromium import Page, needs_browser
from support.console_modules import open_module

pytestmark = needs_browser

VALUES: list[Any] = [
    *(None, True, False, 0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**53 - 1),
    *(-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**53) + 1),
    *(0.5, -93.25, 1e300, 1767322800000.0),
    *("", "a", "é" * 15, "ж" * 16, "x" * 255, "y" * 256, "z" * 70000, "☕️ 93 °C"),
    *([], [1, [2, [3, {}]]], list(range(15)), list(range(16)), list(range(70000))),
    *(
        {},
        {"a": {"b": [1, None, {"c": False}]}},
        {str(n): n for n in range(15)},
        {str(n): n for n in range(16)},
    ),
    {str(n): n for n in range(70000)},
    {"__proto__": 1, "constructor": 2, "toString": 3},
]
# Machines write one-byte numbers, signed and unsigned.
RAW: list[tuple[bytes, Any]] = [
    (b"\xd0\x05", 5),
    (b"\xd1\x01\x00", 256),
    (b"\xd2\x7f\xff\xff\xff", 2**31 - 1),
    (b"\xd2\x80\x00\x00\x00", -(2**31)),
    (b"\xca\x42\xba\x66\x66", 93.2),
    (b"\xca\x00\x00\x00\x00", 0),
    (b"\xde\x00\x01\xa1a\x01", {"a": 1}),
    (b"\xdc\x00\x01\x01", [1]),
    (b"\xda\x00\x01a", "a"),
    (b"\xdb\x00\x00\x00\x01a", "a"),
    (b"\x82\xa1a\xa2\xffb\xa1n\x01", {"a": "\ufffdb", "n": 1}),
]
WRONG = [
    b"",
    b"\xc1",
    b"\xd4\x01\x02",
    b"\x01\x01",
    b"\x91" * 40 + b"\x01",
    b"\xdf\xff\xff\xff\xff",
]


async def decoded(page: Page, encoded: bytes) -> Any:
    """Decode bytes in the page. Return the value, or the name of the exception."""
    text = base64.b64encode(encoded).decode()
    script = (
        "(() => { try { return JSON.stringify(module.decode(Uint8Array.from(atob("
        f"'{text}'), (one) => one.charCodeAt(0)).buffer)); }} catch (error) {{ return error.name; }} }})()"
    )
    found = await page.run(script)
    return found if found in {"RangeError", "TypeError"} else json.loads(found)


async def test_messagepack_is_decoded(tmp_path: Path) -> None:
    async with open_module(tmp_path, "msgpack.js") as page:
        for value in VALUES:
            assert await decoded(page, msgspec.msgpack.encode(value)) == value
        for encoded, value in RAW:
            assert await decoded(page, encoded) == value
        for encoded in WRONG:
            assert await decoded(page, encoded) in {"RangeError", "TypeError"}
        whole = msgspec.msgpack.encode({"type": "status", "temps": [93.25, {"a": "text"}], "n": 70000})
        for length in range(len(whole)):
            assert await decoded(page, whole[:length]) in {"RangeError", "TypeError"}


async def test_status_is_merged_and_read(tmp_path: Path) -> None:
    async with open_module(tmp_path, "state.js") as page:

        async def merged(*said: dict[str, Any]) -> Any:
            steps = "null"
            for message in said:
                steps = f"module.mergeStatus({steps}, {json.dumps(message)})"
            return await page.run(steps)

        full = {"type": "status", "seq": 1, "temps": {"brew": {"current": 90}, "group": 80}, "pressure": 9}
        delta = {"type": "status_delta", "seq": 2, "temps": {"group": 81}, "machine": {"state": "ready"}}
        assert await merged(full, delta) == {
            "temps": {"brew": {"current": 90}, "group": 81},
            "pressure": 9,
            "machine": {"state": "ready"},
        }
        assert await merged(full, delta, {"type": "status", "pressure": 1}) == {"pressure": 1}
        # Readings are numbers or null, even if the machine sends other types.
        odd: dict[str, Any] = {
            "temps": {"brew": {"current": "hot"}},
            "pressure": None,
            "machine": None,
            "power": [],
            "scale": 3,
        }
        read = await page.run(f"module.readStatus({json.dumps(odd)})")
        assert (read["brew"], read["pressure"], read["state"], read["power"], read["weight"]) == (None,) * 5
        old = "{state: 'ready', brewTemp: 93.1, power: 50}"
        more = "{state: 'heating', brewSetpoint: 95}"
        read = await page.run(
            f"module.readStatus(module.mergeOldStatus(module.mergeOldStatus(null, {old}), {more}))"
        )
        assert (read["state"], read["brew"], read["brewTarget"], read["power"]) == ("heating", 93.1, 95, 50)


async def test_backoff_grows_and_ends_with_the_pause_that_the_relay_suggests(tmp_path: Path) -> None:
    async with open_module(tmp_path, "backoff.js") as page:
        await page.run("globalThis.pauses = new module.Backoff(); undefined")
        for number in range(12):
            longest = min(30_000, 1000 * 2**number)
            pause = await page.run("pauses.next()")
            assert longest / 2 <= pause <= longest
        # The suggested pause counts from the message, and wrong ones are ignored.
        await page.run("pauses.suggest(4321); pauses.suggest('soon'); pauses.suggest(-1); undefined")
        assert 0 < await page.run("pauses.next()") <= 4321
        await page.run("pauses.reset(); undefined")
        # A server may be back at once. Attempts before the suggested time become rarer.
        await page.run("pauses.suggest(16000); undefined")
        first, second, third = [await page.run("pauses.next()") for _ in range(3)]
        assert 500 <= first <= 1000 <= second <= 2000 <= third <= 4000


async def test_new_sign_in_subscribes_to_notifications_again(tmp_path: Path) -> None:
    # The last sign-in may be of this user too, and its session ends some day.
    async with open_module(tmp_path, "login_session.js") as page:
        await page.run(
            "localStorage.setItem(module.PUSH_DEVICES, '[]'); module.startSession({accessToken: 'a'})"
        )
        assert await page.run("localStorage.getItem(module.PUSH_DEVICES)") is None
        assert await page.run("module.storedSession().accessToken") == "a"


async def test_history_drops_old_samples_and_keeps_gaps(tmp_path: Path) -> None:
    async with open_module(tmp_path, "history.js") as page:
        script = """(() => {
          const history = new module.History(10000);
          history.add({at: 0, brew: 20});
          history.add({at: 500, brew: 21});
          history.add({at: 400, brew: 22});
          history.add({at: 9000, brew: 30});
          history.interrupt(9500);
          history.interrupt(9900);
          history.add({at: 13000, brew: 40});
          return history.samples.map(({at, brew, gap}) => [at, brew, gap === true]);
        })()"""
        assert await page.run(script) == [
            [500, 22, False],
            [8000, 22, False],
            [9000, 30, False],
            [9500, 30, True],
            [13000, 40, False],
        ]
