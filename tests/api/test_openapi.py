from pathlib import Path
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from quart import Blueprint
from quart_trio import QuartTrio

from brewos_relay.api.openapi import Document, described, document_of, openapi_blueprint, routes_of
from support.household import MACHINE, open_household

METHODS = {"get", "post", "put", "patch", "delete"}


async def document(folder: Path) -> dict[str, Any]:
    async with open_household(folder) as house:
        answer = await house.ask("GET", "/openapi.json", by=None)
        assert answer.status == 200
        content: dict[str, Any] = answer.content
        return content


async def test_the_document_is_valid_openapi(tmp_path: Path) -> None:
    content = await document(tmp_path)
    assert content["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(content).validate()


async def test_every_route_is_in_the_document_and_nothing_else(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        routes = {
            (
                method.lower(),
                rule.rule.replace("device:", "").replace("int:", "").replace("<", "{").replace(">", "}"),
            )
            for rule in house.app.url_map.iter_rules()
            if rule.rule.startswith("/api")
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        }
        undescribed = [route for route in routes_of(house.app) if route.description is None]
        paths = (await house.ask("GET", "/openapi.json", by=None)).content["paths"]
    assert undescribed == []
    assert routes == {(method, path) for path, methods in paths.items() for method in methods}
    assert {method for methods in paths.values() for method in methods} <= METHODS


async def test_every_operation_has_a_summary_and_error_answers(tmp_path: Path) -> None:
    content = await document(tmp_path)
    operations = [operation for methods in content["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"]
        assert not operation["summary"].endswith(".")
        statuses = set(operation["responses"])
        assert {"429", "431", "503"} <= statuses
        assert any(status.startswith("2") for status in statuses)
        if operation["security"]:
            assert "401" in statuses
        if "requestBody" in operation:
            assert {"400", "413", "415"} <= statuses


async def test_answer_to_a_token_without_a_session_is_in_the_document(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        paths = (await house.ask("GET", "/openapi.json", by=None)).content["paths"]
        token = house.token("ops", devices=frozenset({MACHINE}))
        refused = 0
        for path, methods in paths.items():
            if "get" in methods and path.startswith("/api") and "{" not in path.replace("{device_id}", ""):
                asked = path.removeprefix("/api").replace("{device_id}", MACHINE)
                answer = await house.ask("GET", asked, token=token)
                assert str(answer.status) in methods["get"]["responses"], path
                refused += answer.status == 403
        assert refused > 5


async def test_parameters_of_paths_and_queries_are_described(tmp_path: Path) -> None:
    paths = (await document(tmp_path))["paths"]
    activity = paths["/api/devices/{device_id}/activity"]["get"]
    found = {one["name"]: one for one in activity["parameters"]}
    assert (found["device_id"]["in"], found["device_id"]["required"]) == ("path", True)
    assert (found["limit"]["in"], found["limit"]["required"]) == ("query", False)
    assert {"400", "404"} <= set(activity["responses"])


class Given(msgspec.Struct):
    must: int
    may: str = ""


def app_with(body: Any) -> QuartTrio:
    app = QuartTrio(__name__)
    blueprint = Blueprint("some", __name__)

    @blueprint.post("/api/some/<user_id>")
    @described("Do it", answer=int, status=202, body=body, query=Given, refusals=[409], needs_token=False)
    async def some(user_id: str) -> str:
        return user_id

    @blueprint.get("/elsewhere")
    async def elsewhere() -> str:
        return ""

    app.register_blueprint(blueprint)
    app.register_blueprint(openapi_blueprint())
    return app


def test_operation_is_generated_from_its_description() -> None:
    made = document_of(routes_of(app_with(Given)))
    operation = made.paths["/api/some/{user_id}"]["post"]
    assert made.paths.keys() == {"/api/some/{user_id}", "/api/openapi.json"}
    assert operation["operationId"] == "some"
    assert operation["security"] == []
    assert operation["responses"].keys() == {
        *("202", "400", "403", "404", "409", "413", "415", "429", "431", "503")
    }
    assert operation["requestBody"]["required"] is True
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Given"}
    assert made.components["schemas"]["Given"]["required"] == ["must"]
    assert [(one["name"], one["required"]) for one in operation["parameters"]] == [
        ("user_id", True),
        ("must", True),
        ("may", False),
    ]


def test_two_types_with_the_same_name_are_refused() -> None:
    other = msgspec.defstruct("Document", [("else_", int)])
    with pytest.raises(ValueError, match="Document"):
        document_of(routes_of(app_with(other)))


async def test_document_is_generated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = app_with(Given).test_client()
    first = await (await client.get("/api/openapi.json")).get_data()
    monkeypatch.setattr("brewos_relay.api.openapi.document_of", None)
    assert await (await client.get("/api/openapi.json")).get_data() == first
    assert msgspec.json.decode(first, type=Document).openapi == "3.1.0"
