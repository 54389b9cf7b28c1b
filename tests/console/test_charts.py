"""Modules of the charts: axes, the samples of the last minutes, and the curves of shots."""

import json
from pathlib import Path
from typing import Any

from support.chromium import needs_browser
from support.console_modules import open_module

pytestmark = needs_browser


async def test_axes_have_round_ends_and_few_labels(tmp_path: Path) -> None:
    async with open_module(tmp_path, "axes.js") as page:
        assert await page.run("module.roundRange(20, 100, 6)") == [20, 100, 20]
        assert await page.run("module.roundRange(92.13, 93.41, 4)") == [92, 93.5, 0.5]
        assert await page.run("module.roundRange(5, 5, 4)") is not None
        assert await page.run("module.places(92, 93.5, 0.5)") == [92, 92.5, 93, 93.5]
        for seconds in (2, 7, 30, 61, 600, 601, 7200, 100_000):
            for most in (2, 5, 11):
                assert (
                    1 <= seconds / await page.run(f"module.timeStep({seconds}, {most})") <= most or most == 2
                )
        # A zoom stays on the axis, and is not narrower than the least part.
        assert await page.run("module.within([-5, 5], [0, 100], 2)") == [0, 10]
        assert await page.run("module.within([95, 115], [0, 100], 2)") == [80, 100]
        assert await page.run("module.within([50, 50.5], [0, 100], 2)") == [49.25, 51.25]
        assert await page.run("module.within([-9, 900], [0, 100], 2)") == [0, 100]
        # The values below two fingers stay below them.
        assert await page.run("module.pinched([20, 40], [0.25, 0.75])") == [10, 50]
        assert await page.run("module.pinched([20, 40], [0.5, 0.5])") is None
        assert await page.run("module.pinched([20, 40], [0.75, 0.25])") is None


RECORDED = """{atMs: 1000000, timesMs: [990000, 991000, 995000, 999000], brewing: [false, true, false, false],
  online: [true, true, true, %s], values: {brewTemp: [90, 91, null, 93], pressure: [0, 9, 1, 0]}}"""


async def test_recorded_samples_join_live_ones_without_a_gap_or_a_double(tmp_path: Path) -> None:
    async with open_module(tmp_path, "history.js") as page:
        # The clock of this browser is 4,000 s ahead. The answer took 200 ms.
        script = """(() => {
          const { samples, until } = module.recordedSamples(RECORDED, {sentAt: 5000000, receivedAt: 5000200});
          const history = new module.History(600000);
          history.add({at: 4980000, brew: 80});
          history.interrupt(4981000);
          history.add({at: 4999050, brew: 93});
          history.add({at: 5000150, brew: 94});
          history.merge(samples, until);
          const row = ({at, brew, gap, isBrewing}) => [at, brew, gap === true, isBrewing === true];
          return [until, history.samples.map(row)];
        })()"""
        until, samples = await page.run(script.replace("RECORDED", RECORDED % "true"))
        assert until == 5000100
        assert samples == [
            [4980000, 80, False, False],  # the relay does not know this one
            [4981000, 80, True, False],
            [4990100, 90, False, False],
            [4991100, 91, False, True],
            [4994100, 91, False, True],  # values hold until shortly before the next ones
            [4995100, None, False, False],
            [4998100, None, False, False],
            [4999100, 93, False, False],
            [5000150, 94, False, False],
        ]
        # The machine went offline before the answer.
        _, samples = await page.run(script.replace("RECORDED", RECORDED % "false"))
        assert samples[-2:] == [[4999100, None, True, False], [5000150, 94, False, False]]
        # A restarted relay knows nothing: the samples of the page stay.
        assert await page.run(
            "(() => { const history = new module.History(9000); history.add({at: 1, brew: 2});"
            " history.merge([], 5); return history.samples; })()"
        ) == [{"at": 1, "brew": 2}]


async def test_narrow_chart_loads_fewer_samples_and_draws_no_steps(tmp_path: Path) -> None:
    async with open_module(tmp_path, "trend.js") as page:
        script = """(async () => {
          const session = { accessToken: "a", expiresAt: Date.now() + 3600000 };
          localStorage.setItem("brewos_session", JSON.stringify(session));
          const asked = [];
          globalThis.fetch = async (path) => {
            asked.push(path);
            const atMs = Date.now();
            const timesMs = [atMs - 12000, atMs - 8000, atMs - 4000, atMs];
            const rest = timesMs.map(() => false);
            const values = { brewTemp: [90, 91, 92, 93] };
            return Response.json({ atMs, timesMs, brewing: rest, online: rest.map(() => true), values });
          };
          const found = [];
          for (const width of [300, 900, 0]) {
            const trend = new module.Trend("BRW-0000001A");
            await trend.load(width);
            found.push([asked.at(-1).split("?")[1], trend.history.samples.map(({ brew }) => brew)]);
          }
          return found;
        })()"""
        narrow, wide, hidden = await page.run(script)
        assert narrow == ["apartMs=4000", [90, 91, 92, 93]]
        assert wide == hidden == ["apartMs=2000", [90, 90, 91, 91, 92, 92, 93]]


async def test_columns_end_at_gaps_and_hold_the_last_value(tmp_path: Path) -> None:
    async with open_module(tmp_path, "history.js") as page:
        script = """(() => {
          const history = new module.History(600000);
          history.add({at: 1000, brew: 20, steam: null});
          history.interrupt(2000);
          history.add({at: 3000, brew: 21, steam: 100});
          const columns = history.columns(["brew", "steam"], 4000);
          return [columns, history.at(2500).gap, history.at(500) === undefined];
        })()"""
        assert await page.run(script) == [
            {"xs": [1, 2, 2, 3, 4], "columns": [[20, 20, None, 21, 21], [None, None, None, 100, 100]]},
            True,
            True,
        ]


async def test_shots_lie_on_one_axis_from_their_start(tmp_path: Path) -> None:
    async with open_module(tmp_path, "curves.js") as page:
        shot = """module.recordedShot({shot: {id: %d, beganAtMs: 7, durationMs: 4000}, profile: {timesMs: %s,
          values: {pressure: %s, flow: [0, 0, 0], weight: [0, 0, 0], groupTemp: [88, 89, 90]}}})"""
        one = shot % (1, "[0, 1000, 2000]", "[0, 4, 8]")
        other = shot % (2, "[500, 1500, 5500]", "[1, 3, 9]")
        aligned = await page.run(f"module.align([{one}, {other}], ['pressure'])")
        assert aligned == {
            "xs": [0, 0.5, 1, 1.5, 2, 4.5, 5.5],
            "columns": {"pressure": [[0, 2, 4, 6, 8, None, None], [None, 1, 2, 3, 3, 3, 9]]},
        }
        # Zeros of a machine without a scale are no values.
        assert await page.run(f"module.has({one}, 'weight')") is False
        assert await page.run(f"module.greatest({one}, 'flow')") is None
        # Without a temperature of the boiler, that of the group counts.
        assert await page.run(f"module.latest({one}, 'temperature')") == 90
        assert await page.run(f"module.greatest({one}, 'pressure')") == 8
        assert await page.run(f"module.valueAt({one}, 'pressure', 1.5)") == 6


async def test_running_and_last_shot_are_found_in_the_samples(tmp_path: Path) -> None:
    async with open_module(tmp_path, "curves.js") as page:

        async def last_run(*samples: tuple[int, bool, bool]) -> Any:
            listed = [
                {"at": at, "isBrewing": brews, "gap": gap, "pressure": at, "weight": 1}
                for at, brews, gap in samples
            ]
            script = f"module.lastRun({json.dumps(listed)}, 60000)"
            found = await page.run(script)
            return found and (
                found["startedAt"],
                found["seconds"],
                found["runs"],
                [each["at"] for each in found["points"]],
            )

        assert await last_run() is None
        assert await last_run((1000, False, False)) is None
        running = [(1000, False, False), (30_000, True, False), (40_000, True, False)]
        assert await last_run(*running) == (30_000, 30, True, [0, 10])
        assert await last_run(*running, (45_000, False, False)) == (30_000, 15, False, [0, 10, 15])
        # A lost machine ends a shot. The relay does not record a flush of a second.
        assert await last_run(*running, (45_000, True, True)) == (30_000, 15, False, [0, 10, 15])
        flush = [(50_000, True, False), (51_000, False, False)]
        assert await last_run(*running, (45_000, False, False), *flush) == (30_000, 15, False, [0, 10, 15])
