from pathlib import Path
from typing import Any

import trio

from brewos_relay.instances import Description, Rates, Survey, SurveyedInstance
from brewos_relay.registry.accounts import set_admin
from support.household import open_household
from support.sign_ins import sign_in


async def instances(folder: Path, found: Survey | None) -> Any:
    """Ask for the instances as an administrator."""

    async def survey() -> Survey | None:
        await trio.lowlevel.checkpoint()
        return found

    async with open_household(folder, survey=survey) as house:
        session = await sign_in(house)
        token = str(session["accessToken"])
        assert (await house.ask("GET", "/admin/instances", token=token)).status == 403
        await house.store.write(set_admin, session["user"]["id"], True)
        answer = await house.ask("GET", "/admin/instances", token=token)
        assert answer.status == 200
        return answer.content


async def test_a_single_instance_has_no_list(tmp_path: Path) -> None:
    assert await instances(tmp_path, None) == {"bus": None, "instances": [], "problems": []}


def worker(name: str, answer_ms: float | None, **content: Any) -> SurveyedInstance:
    described = {"version": "1.0", "host": "kitchen", "parent": "boot kitchen 1", **content}
    return SurveyedInstance(name, Description(**described), answer_ms)


async def test_the_workers_of_a_server_are_one_instance(tmp_path: Path) -> None:
    one = {"started_ms": 2000, "devices": 1, "clients": 2, "undeliverable": 3, "rates": Rates(0.1, 1, 2, 3)}
    two = {"started_ms": 1000, "devices": 10, "clients": 20, "undeliverable": 30}
    survey = Survey(
        0.51239,
        [
            worker("kitchen-1", 0.5, **one),
            worker("kitchen-2", 0.75, closing=True, rates=Rates(0.2, 1, 2, 3), **two),
            worker("office-1", None, parent=""),
        ],
    )
    answer = await instances(tmp_path, survey)
    assert answer["bus"] == {"available": True, "answerMs": 0.512}
    kitchen, office = answer["instances"]
    assert kitchen == {
        "name": "kitchen-1",
        "state": "draining",
        "processes": 2,
        "version": "1.0",
        "host": "kitchen",
        "startedAt": "1970-01-01T00:00:01.000Z",
        "devices": 11,
        "clients": 22,
        "undeliverable": 33,
        "perSecond": {"fromDevices": 0.3, "fromClients": 2.0, "toClients": 4.0, "commands": 6.0},
        "answerMs": 0.75,
    }
    assert (office["state"], office["processes"], office["startedAt"]) == ("silent", 1, None)
    assert [(each["kind"], bool(each["advice"])) for each in answer["problems"]] == [("silent", True)]


async def test_a_bus_that_is_away_is_a_problem(tmp_path: Path) -> None:
    answer = await instances(tmp_path, Survey(None, [worker("kitchen-1", 0.0)]))
    assert answer["bus"] == {"available": False, "answerMs": None}
    assert [each["kind"] for each in answer["problems"]] == ["bus"]
