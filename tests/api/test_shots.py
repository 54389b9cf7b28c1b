import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from quart.testing.utils import sentinel

from brewos_relay.live_devices import DeviceHistory
from brewos_relay.registry.records import Shot
from brewos_relay.registry.shots import add_shots
from brewos_relay.vocabulary import now_ms
from support.household import MACHINE, SECOND, STRANGE, Household, open_household

PATH = f"/devices/{MACHINE}/shots"
PROFILE = {"timesMs": [0, 1000], "values": {"pressure": [3.0, 9.1], "weight": [None, 4.5]}}


def shot(number: int = 0, *, of: str = MACHINE, began_at_ms: int | None = None) -> Shot:
    return Shot(
        device_id=of,
        began_at_ms=now_ms() + number if began_at_ms is None else began_at_ms,
        duration_ms=28_500,
        is_complete=True,
        summary={"weight": 36.0, "dose": 18.0, "peakPressure": 9.1},
        profile=zlib.compress(msgspec.json.encode(PROFILE)),
    )


async def add(house: Household, *shots: Shot) -> None:
    await house.store.write(add_shots, shots, kept=100)


async def listed(house: Household, query: str = "", **asked: Any) -> tuple[list[dict[str, Any]], int | None]:
    answer = await house.ask("GET", PATH + query, **asked)
    assert answer.status == 200
    return answer.content["shots"], answer.content["next"]


async def raw(house: Household, path: str) -> tuple[str, str, bytes]:
    token = await house.signed_in("ada")
    with trio.fail_after(10):
        response = await house.app.test_client().open(
            f"/api{path}", method="GET", headers={"Authorization": f"Bearer {token}"}, json=sentinel
        )
        content = await response.get_data(as_text=False)
    assert response.status_code == 200
    return response.content_type or "", response.headers["Content-Disposition"], content


@pytest.mark.usefixtures("each_registry")
async def test_users_of_a_machine_read_its_shots_and_owners_delete_them(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("eve", "viewer")
        await add(house, *map(shot, range(5)), shot(of=SECOND))
        first, after = await listed(house, "?limit=3", by="eve")
        assert [one["summary"]["weight"] for one in first] == [36.0] * 3
        rest, end = await listed(house, f"?limit=3&before={after}")
        ids = [one["id"] for one in (*first, *rest)]
        assert (len(ids), end, ids) == (5, None, sorted(ids, reverse=True))
        middle = first[1]["beganAtMs"]
        assert len((await listed(house, f"?fromMs={middle}"))[0]) == 2
        assert len((await listed(house, f"?untilMs={middle}"))[0]) == 3
        one = f"{PATH}/{ids[0]}"
        assert (await house.ask("GET", one, by="eve")).content["profile"] == PROFILE
        assert (await house.ask("DELETE", one, by="eve")).status == 403
        for path in (one, PATH, f"{one}/csv", f"/devices/{MACHINE}/history"):
            assert (await house.ask("GET", path, by="mallory")).status == 404
        assert (await house.ask("GET", f"/devices/{SECOND}/shots/{ids[0]}")).status == 404
        assert (await house.ask("GET", f"/devices/{STRANGE}/shots")).status == 404
        assert (await house.ask("DELETE", one)).status == 200
        assert (await house.ask("DELETE", one)).status == 404
        assert len((await listed(house))[0]) == 4


@pytest.mark.parametrize("number", ["0", "99999999", str(2**63), "9" * 400])
async def test_unknown_shots_are_not_found(tmp_path: Path, number: str) -> None:
    async with open_household(tmp_path) as house:
        for method in ("GET", "DELETE"):
            assert (await house.ask(method, f"{PATH}/{number}")).status == 404


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "before=0", f"before={2**63}", "fromMs=x", "untilMs=-1"]
)
async def test_malformed_queries_are_refused(tmp_path: Path, query: str) -> None:
    async with open_household(tmp_path) as house:
        assert (await house.ask("GET", f"{PATH}?{query}")).status == 400


async def test_shots_are_exported_as_files(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await add(house, shot())
        (one,), _ = await listed(house)
        path = f"{PATH}/{one['id']}"
        media, attached, content = await raw(house, f"{path}/csv")
        assert media == "text/csv; charset=utf-8"
        assert attached.startswith(f'attachment; filename="{MACHINE}-2')
        assert content == b"time (s),pressure (bar),weight (g)\r\n0.0,3.0,\r\n1.0,9.1,4.5\r\n"
        media, attached, content = await raw(house, f"{path}/json")
        assert media == "application/json"
        assert msgspec.json.decode(content)["profile"] == PROFILE
        media, attached, content = await raw(house, f"{path}/visualizer")
        assert attached.endswith('.visualizer.json"')
        file = msgspec.json.decode(content)
        assert file["timestamp"] == one["beganAtMs"] // 1000
        assert file["elapsed"] == [0.0, 1.0]
        assert file["pressure"]["pressure"] == [3.0, 9.1]
        assert file["totals"]["weight"] == [0.0, 4.5]
        assert file["app"]["data"]["settings"] == {"drink_weight": "36", "grinder_dose_weight": "18"}


async def test_history_at_rest_can_have_fewer_samples(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("eve", "viewer")
        now = now_ms() + 100_000
        brewing = [12 <= number < 16 for number in range(30)]
        online = [number != 22 for number in range(30)]
        values = {"pressure": [float(number) for number in range(30)]}
        times_ms = [now + 500 * (number - 29) for number in range(30)]
        house.relay.histories[MACHINE] = DeviceHistory(now, times_ms, brewing, online, values)

        async def numbers(query: str) -> list[float]:
            answer = (await house.ask("GET", f"/devices/{MACHINE}/history{query}", by="eve")).content
            assert len(answer["timesMs"]) == len(answer["brewing"]) == len(answer["online"])
            return list(answer["values"]["pressure"])

        assert await numbers("") == list(range(30))
        # All samples of a shot, those beside a change, and the last one are there.
        assert await numbers("?apartMs=2000") == [0, 4, 8, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23, 27, 29]


async def test_history_is_that_of_the_present_users(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("eve", "viewer")
        at_ms = now_ms()
        house.relay.histories[MACHINE] = DeviceHistory(
            at_ms, [500, at_ms + 1000], [False, True], [True, True], {"pressure": [1.0, 9.0]}
        )
        answer = (await house.ask("GET", f"/devices/{MACHINE}/history?seconds=600", by="eve")).content
        assert answer["timesMs"] == [at_ms + 1000], "the other is from before there were users"
        assert (answer["brewing"], answer["online"]) == ([True], [True])
        assert answer["values"]["pressure"] == [9.0]
        assert answer["values"]["flow"] == []
        assert answer["measures"][0] == {"name": "pressure", "unit": "bar"}
        empty = (await house.ask("GET", f"/devices/{SECOND}/history")).content
        assert (empty["timesMs"], empty["values"]["pressure"]) == ([], [])
        for query in ("seconds=0", "seconds=nan", "seconds=x", "seconds=1e9"):
            assert (await house.ask("GET", f"/devices/{MACHINE}/history?{query}")).status == 400
