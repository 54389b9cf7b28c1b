from typing import Any

import pytest
from quart import request
from quart_trio import QuartTrio
from werkzeug.routing import Rule

from support.household import MACHINE, Household

SECRET = "a-password-in-an-exception"


def add_route(app: QuartTrio, path: str, failure: BaseException) -> None:
    async def fail() -> str:
        raise failure

    app.add_url_rule(path, path, fail)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/api/nothing/here", "/api/", "/api", "/api/health/more", "/api//health"])
async def test_unknown_api_paths_are_a_404_in_json(app: QuartTrio, method: str, path: str) -> None:
    response = await getattr(app.test_client(), method.lower())(path)
    assert response.status_code == 404
    assert response.content_type == "application/json"
    assert "Not Found" in (await response.get_json())["error"]


async def test_no_builder_of_urls_is_compiled_at_start(
    monkeypatch: pytest.MonkeyPatch, make_app: Any
) -> None:
    compiled: list[str] = []
    compile_builder = Rule._compile_builder

    def count(rule: Rule, append_unknown: bool = True) -> Any:
        compiled.append(rule.rule)
        return compile_builder(rule, append_unknown)

    monkeypatch.setattr(Rule, "_compile_builder", count)
    app = make_app(None)
    adapter = app.url_map.bind("relay.example")
    assert adapter.match("/api/health")
    assert compiled == []
    assert adapter.build(adapter.match("/api/health")[0]) == "/api/health"
    assert compiled == ["/api/health"]


async def test_an_api_path_with_another_method_is_a_405_in_json(app: QuartTrio) -> None:
    response = await app.test_client().post("/api/health")
    assert response.status_code == 405
    assert "GET" in response.headers["Allow"]
    assert "Method Not Allowed" in (await response.get_json())["error"]


@pytest.mark.parametrize("failure", [ValueError(SECRET), ExceptionGroup(SECRET, [KeyError(SECRET)])])
async def test_an_exception_is_a_500_in_json_without_its_text(app: QuartTrio, failure: Exception) -> None:
    add_route(app, "/api/broken", failure)
    response = await app.test_client().get("/api/broken")
    assert response.status_code == 500
    assert response.headers["Vary"] == "Authorization"
    assert await response.get_json() == {"error": "Internal Server Error."}


async def test_an_exception_outside_of_the_api_is_a_500_without_its_text(app: QuartTrio) -> None:
    add_route(app, "/broken", ValueError(SECRET))
    response = await app.test_client().get("/broken")
    assert response.status_code == 500
    assert await response.get_data(as_text=True) == "Internal Server Error\n"


async def test_no_environment_switches_tracebacks_on(monkeypatch: pytest.MonkeyPatch, make_app: Any) -> None:
    monkeypatch.setenv("QUART_DEBUG", "1")
    monkeypatch.setenv("FLASK_DEBUG", "1")
    app = make_app(None)
    add_route(app, "/api/broken", ValueError(SECRET))
    response = await app.test_client().get("/api/broken")
    assert SECRET not in await response.get_data(as_text=True)


@pytest.mark.parametrize("path", ["/api/health", "/api/devices", "/api/nothing"])
async def test_api_answers_are_not_cached_or_shared(house: Household, path: str) -> None:
    asked = house.app.test_client().get(path, headers={"Authorization": f"Bearer {house.token('ada')}"})
    response = await asked
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Vary"] == "Authorization"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(("size_bytes", "status"), [(64 * 1024, 200), (64 * 1024 + 1, 413)])
async def test_body_size_is_bounded(app: QuartTrio, size_bytes: int, status: int) -> None:
    @app.post("/api/echo")
    async def echo() -> dict[str, int]:
        return {"bytes": len(await request.get_data())}

    response = await app.test_client().post("/api/echo", data=b"x" * size_bytes)
    assert response.status_code == status
    assert response.content_type == "application/json"


async def test_other_paths_are_refused_in_plain_text(app: QuartTrio) -> None:
    response = await app.test_client().get("/apiary")
    assert response.status_code == 404
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Vary" not in response.headers


async def test_url_of_a_route_can_be_built_although_the_relay_builds_none(app: QuartTrio) -> None:
    values = {"device_id": MACHINE, "user_id": "ada"}
    rules = [each for each in app.url_map.iter_rules() if each.rule.startswith("/api/devices/")]
    found = [each.build(values) for each in rules if each.rule.endswith("/users/<user_id>")]
    assert found
    assert set(found) == {("", f"/api/devices/{MACHINE}/users/ada")}
