"""The charts and the shots of a machine in a real browser, with a real server and a simulated machine."""

from pathlib import Path
from typing import Any

import trio

from brewos_relay.vocabulary import now_ms
from support.chromium import Page, needs_browser, open_page
from support.console import MACHINE, complaints, open_kitchen, settle_in, sign_in
from support.shots import add_recorded_shots, recorded_shot

pytestmark = needs_browser

PATH = f"/machine/{MACHINE}/shots"
TITLE = "document.querySelector('#comparison-title').textContent"

# The temperatures of the brew boiler at ten points of the visible part of the chart, null where it has a gap.
BREW_TEMPS = """(() => {
  const chart = document.querySelector("#trend");
  const press = (key) => chart.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey: key !== "Home" }));
  press("Home");
  return Array.from({ length: 10 }, () => {
    const [, value] = /Brew ([\\d.]+) °C/.exec(chart.getAttribute("aria-valuetext")) ?? [];
    press("ArrowRight");
    return value === undefined ? null : Number(value);
  });
})()"""


async def brew_temps(page: Page) -> list[float]:
    values: list[float] = await page.run(BREW_TEMPS)
    assert None not in values, "the chart has a gap"
    return values


def shots_of_a_day(count: int = 3) -> list[Any]:
    """Make shots, oldest first: each takes a second more, and weighs a gram more."""
    now = now_ms()
    return [
        recorded_shot(
            MACHINE,
            began_at_ms=now - (count - number) * 60_000,
            seconds=25.0 + number,
            weight_g=34.0 + number,
            peak_bar=9.0,
        )
        for number in range(count)
    ]


async def figures(page: Page) -> dict[str, list[str]]:
    """Read the table of figures: the values by the heading of their row."""
    rows = await page.run(
        "[...document.querySelectorAll('#figures tbody tr')]"
        ".map((row) => [...row.children].map((cell) => cell.innerText.replace(/\\s+/g, ' ')))"
    )
    return {name: values for name, *values in rows}


async def drawn(page: Page, place: str) -> None:
    """Wait until a chart is drawn."""
    await page.wait_for(f"!!document.querySelector('{place} canvas')")


async def test_chart_has_the_history_of_the_relay_after_a_reload_and_continues(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        kitchen.machine.switch_on()
        kitchen.switch_on(speed=10, tick_s=0.25)
        await sign_in(page, kitchen)
        await page.see("Heating")
        await trio.sleep(2.5)
        await page.go(kitchen.url + f"/machine/{MACHINE}?again")
        await page.see("Heating")
        await drawn(page, "#trend")

        # The keyboard zooms to the last seconds, and moves the cursor.
        await page.run("document.querySelector('#trend').focus()")
        for _ in range(8):
            await page.key("+")
        assert await page.run("document.querySelector('#trend-all').hidden") is False
        values = await brew_temps(page)
        assert values == sorted(values)
        assert values[0] < values[-1] - 3, "the machine has heated up since before the reload"
        await page.key("Escape")
        assert await page.run("document.querySelector('#trend-all').hidden") is True

        # The table has the same values for screen readers.
        await page.press("#trend-values summary")
        await page.wait_for("document.querySelectorAll('#trend-table tbody tr').length === 10")
        assert await page.run("document.querySelectorAll('#trend-table thead th').length") == 6

        # What the page misses without a network is fetched later.
        await page.set_network(is_there=False)
        await page.see("No network")
        await trio.sleep(1)
        await page.set_network(is_there=True)
        await page.wait_for("document.querySelector('#link-text').textContent === 'Live'")
        await page.run("document.querySelector('#trend').focus()")
        for _ in range(8):
            await page.key("+")
        await page.wait_for(f"!({BREW_TEMPS}).includes(null)")
        values = await brew_temps(page)
        assert values == sorted(values)
        assert complaints(page, expected=("Failed to load resource", "WebSocket connection to")) == []


async def test_running_shot_is_complete_after_a_reload(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        await add_recorded_shots(server, *shots_of_a_day(1))
        kitchen.machine.switch_on()
        for boiler in (kitchen.machine.brew, kitchen.machine.steam):
            boiler.temp_c = boiler.sensor_c = boiler.setpoint_c
        kitchen.machine.step(1)
        assert kitchen.machine.pull_shot()
        kitchen.switch_on()
        await sign_in(page, kitchen)
        # The newest recorded shot is linked.
        await page.see("25.0 s · 34.0 g")
        await page.wait_for("document.querySelector('#shot-when').textContent === 'running'")
        await page.wait_for("Number(document.querySelector('#shot-time').textContent) > 2")
        await page.go(kitchen.url + f"/machine/{MACHINE}?again")
        await page.wait_for("document.querySelector('#shot-when')?.textContent === 'running'")
        await page.wait_for("Number(document.querySelector('#shot-time').textContent) > 2")
        await drawn(page, "#shot")
        assert complaints(page) == []


async def test_shots_are_compared_downloaded_and_shared(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        await add_recorded_shots(server, *shots_of_a_day())
        downloads = tmp_path / "downloads"
        await page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        await sign_in(page, kitchen, PATH)
        # The newest one is shown first.
        await page.see("27.0 s")
        await drawn(page, "#curves")
        assert (await figures(page))["Weight"] == ["36.0 g"]

        # The keyboard chooses another one, and the address has both.
        await page.run("document.querySelectorAll('#shots input')[2].focus()")
        await page.key(" ", text=" ")
        await page.wait_for("location.search === '?shots=3,1'")
        await page.wait_for(f"{TITLE} === '2 shots compared'")
        assert (await figures(page))["Time"] == ["27.0 s", "25.0 s \N{MINUS SIGN}2.0"]
        assert (await figures(page))["Weight"] == ["36.0 g", "34.0 g \N{MINUS SIGN}2.0"]
        assert (await figures(page))["Peak pressure"] == ["9.0 bar", "9.0 bar"]
        assert (await figures(page))["Ratio"] == ["1 : 2.0", "1 : 1.9 \N{MINUS SIGN}0.1"]
        await page.press("#curves-values summary")
        await page.wait_for("document.querySelectorAll('#curves-table thead th').length === 9")

        # Files are downloaded with the session of the user.
        await page.press("#figures [aria-label^='Download'][aria-label$='as CSV']")
        while not [file for file in downloads.glob("*.csv") if file.stat().st_size]:  # noqa: ASYNC110
            await trio.sleep(0.05)
        assert next(downloads.glob("*.csv")).read_text().startswith("time (s),pressure (bar)")

        # A link to a shot, the way back, and the address in another tab that is signed out.
        await page.press("#shots tr:nth-child(2) a")
        await page.wait_for("location.search === '?shots=2' && document.title")
        await page.see("26.0 s")
        await page.run("history.back()")
        await page.wait_for(f"{TITLE} === '2 shots compared'")
        await page.run("localStorage.clear()")
        await page.go(f"{kitchen.url}{PATH}?shots=3,1&token=secret")
        await page.wait_for("location.pathname === '/login'")
        asked = await page.run("new URLSearchParams(location.search).get('next')")
        assert asked == f"{PATH}?shots=3,1"
        assert complaints(page) == []


async def test_chart_zooms_by_dragging_and_with_two_fingers(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        await add_recorded_shots(server, *shots_of_a_day(1))
        await page.be(width=390, height=844)
        await sign_in(page, kitchen, PATH)
        await drawn(page, "#curves")
        left, top, width = await page.run(
            "(() => { const { left, top, width } = document.querySelector('#curves .u-over')"
            ".getBoundingClientRect(); return [left, top + 40, width]; })()"
        )

        async def mouse(kind: str, share: float) -> None:
            at = {"x": left + share * width, "y": top}
            await page.call(
                "Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **at
            )

        async def ends() -> tuple[float, float]:
            """Read the visible part of the axis, which the keyboard tells."""
            await page.run("document.querySelector('#curves').focus()")
            await page.key("End")
            low, high = await page.run(
                "['min', 'max'].map((end) => Number(document.querySelector('#curves')"
                ".getAttribute(`aria-value${end}`)))"
            )
            return low, high

        assert await ends() == (0, 30)
        for kind, share in (("mousePressed", 0.2), ("mouseMoved", 0.5), ("mouseMoved", 0.8)):
            await mouse(kind, share)
        await mouse("mouseReleased", 0.8)
        await page.wait_for("!document.querySelector('#curves-all').hidden")
        low, high = await ends()
        assert abs(low - 6) < 0.5
        assert abs(high - 24) < 0.5
        await page.press("#curves-all")
        assert await ends() == (0, 30)

        async def touch(kind: str, *shares: float) -> None:
            points = [
                {"x": left + share * width, "y": top, "id": number} for number, share in enumerate(shares)
            ]
            await page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

        # One finger shows the values, two fingers zoom.
        await touch("touchStart", 0.5)
        await touch("touchMove", 0.6)
        await page.wait_for("document.querySelector('#reading').textContent === '18.0 s'")
        assert "9.0 bar" in await page.run("document.querySelector('#lines').innerText")
        await touch("touchEnd")
        await touch("touchStart", 0.4)
        await touch("touchStart", 0.4, 0.6)
        await touch("touchMove", 0.3, 0.7)
        await touch("touchEnd")
        low, high = await ends()
        assert abs(low - 7.5) < 0.5
        assert abs(high - 22.5) < 0.5
        assert complaints(page) == []


async def test_owner_deletes_a_shot_and_loads_earlier_ones(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        await add_recorded_shots(server, *shots_of_a_day(33))
        await sign_in(page, kitchen, PATH)
        await page.go(f"{kitchen.url}{PATH}?shots=33,77")
        await page.see("does not exist any more")
        assert await page.run("document.querySelectorAll('#shots tr').length") == 30
        await page.press("#more")
        await page.wait_for("document.querySelectorAll('#shots tr').length === 33")
        assert await page.run("document.querySelector('#more').hidden") is True
        await page.press("#figures .bad")
        await page.press("#confirm-do")
        await page.wait_for("document.querySelectorAll('#shots tr').length === 32")
        await page.see("Choose a shot from the list.")
        # Six can be told apart.
        for number in range(6):
            await page.press(f"#shots tr:nth-child({number + 1}) input")
            await page.wait_for(f"document.querySelectorAll('#figures thead th').length === {number + 1}")
        assert await page.run("document.querySelector('#shots tr:nth-child(7) input').disabled") is True
        assert complaints(page, expected=("Failed to load resource",)) == []


async def test_viewer_reads_shots_and_a_new_machine_has_none(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server, role="viewer")
        await sign_in(page, kitchen, PATH)
        await page.see("has not recorded a shot of this machine yet")
        await add_recorded_shots(server, *shots_of_a_day(1))
        await page.go(f"{kitchen.url}{PATH}?again")
        await page.see("25.0 s")
        await page.see("Visualizer")
        assert await page.run("document.querySelector('#figures .bad')") is None
        assert (await figures(page))["Temperature"][0].endswith(" °C")
        await page.run(
            "localStorage.setItem('brewos_relay_preferences', '{\"temperature\": \"fahrenheit\"}')"
        )
        await page.go(f"{kitchen.url}{PATH}?fahrenheit")
        await page.see("°F")
        fahrenheit = float((await figures(page))["Temperature"][0].removesuffix(" °F"))
        assert 198 < fahrenheit < 201
        await page.go(f"{kitchen.url}/machine/BRW-99999999/shots")
        await page.see("There is no such device, or you have no access to it.")
        assert await page.run("document.querySelector('#loading').hidden") is True
