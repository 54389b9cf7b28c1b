from typing import Annotated

import msgspec
import pytest
from quart import Response, request
from quart_trio import QuartTrio

from brewos_relay.api import login_sessions, passwords, sign_in
from brewos_relay.api.payloads import Refused, SecretStruct, body_of, checked_name, error_answer, query_of
from brewos_relay.vocabulary import iso_time


def test_times_are_iso_8601_in_utc_with_milliseconds() -> None:
    assert iso_time(0) == "1970-01-01T00:00:00.000Z"
    assert iso_time(1_700_000_000_001) == "2023-11-14T22:13:20.001Z"


def test_iso_time_of_none_is_none() -> None:
    assert iso_time(None) is None


JSON = {"Content-Type": "application/json"}


class Thing(msgspec.Struct, rename="camel"):
    device_id: Annotated[str, msgspec.Meta(max_length=12)]
    count: int = 0


@pytest.fixture
def app() -> QuartTrio:
    app = QuartTrio(__name__)

    @app.post("/thing")
    async def thing() -> dict[str, object]:
        body = await body_of(request, Thing)
        return {"id": body.device_id, "count": body.count}

    @app.get("/thing")
    async def asked() -> dict[str, object]:
        query = query_of(request, Thing)
        return {"id": query.device_id, "count": query.count}

    async def refuse(refusal: Refused) -> Response:
        return error_answer(refusal.problem, status=refusal.status, headers=refusal.headers)

    app.register_error_handler(Refused, refuse)
    return app


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"]
)
async def test_a_body_that_is_declared_as_json_is_read(app: QuartTrio, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    response = await app.test_client().post("/thing", data=b'{"deviceId":"a","more":[1]}', headers=headers)
    assert response.status_code == 200
    assert await response.get_json() == {"id": "a", "count": 0}


@pytest.mark.parametrize(
    "content_type",
    [
        *(None, "", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded"),
        *("text/plain; application/json", "text/plain, application/json", "application/jsonp", "json"),
    ],
)
async def test_a_body_that_a_form_can_send_is_refused(app: QuartTrio, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type is not None else {}
    response = await app.test_client().post("/thing", data=b'{"deviceId":"a"}', headers=headers)
    assert response.status_code == 415
    assert "application/json" in (await response.get_json())["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}",
        b'{"deviceId":1}',
        b'{"deviceId":null}',
        b'{"deviceId":"a","count":"1"}',
        b'{"deviceId":"' + b"a" * 13 + b'"}',
        b'{"deviceId":"\xff"}',
        b'{"deviceId":"\\ud800"}',
        b"\xff\xfe{\x00}\x00",
        b'{"deviceId":"a","x":' + b"[" * 60_000,
        b"deviceId=a",
    ],
)
async def test_invalid_body_is_a_400_that_does_not_quote_it(app: QuartTrio, body: bytes) -> None:
    response = await app.test_client().post("/thing", data=body, headers=JSON)
    assert response.status_code == 400
    error = (await response.get_json())["error"]
    assert error.endswith(".")
    assert "aaaa" not in error


async def test_error_names_the_wrong_member(app: QuartTrio) -> None:
    response = await app.test_client().post("/thing", data=b'{"deviceId":"a","count":[]}', headers=JSON)
    assert "$.count" in (await response.get_json())["error"]


async def test_query_is_decoded_by_its_type(app: QuartTrio) -> None:
    response = await app.test_client().get("/thing?deviceId=a&count=3&more=1")
    assert await response.get_json() == {"id": "a", "count": 3}
    response = await app.test_client().get("/thing?deviceId=a&count=many")
    assert response.status_code == 400
    assert "$.count" in (await response.get_json())["error"]


def test_valid_name_is_stripped() -> None:
    assert checked_name("  Küche 1 ", what="A name", longest_chars=7) == "Küche 1"
    family = "\U0001f468\u200d\U0001f469"
    assert checked_name(family, what="A name", longest_chars=7) == family


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "a\nb", "\ud800", "12345678", "\u202eabc", "\u200b"])
def test_invalid_name_is_a_400(text: str) -> None:
    with pytest.raises(Refused, match="A name must have 1 to 7 printable characters") as refused:
        checked_name(text, what="A name", longest_chars=7)
    assert refused.value.status == 400


def test_repr_of_a_secret_struct_hides_its_fields() -> None:
    class Password(SecretStruct, rename="camel"):
        password: str

    assert repr(Password("correct horse")) == "<Password>"


def test_structs_with_secret_fields_hide_them() -> None:
    for module in (sign_in, login_sessions, passwords):
        for name, kind in vars(module).items():
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct:
                fields = {field.name for field in msgspec.structs.fields(kind)}
                secret = fields & {"password", "token", "credential", "access_token", "refresh_token"}
                assert not secret or issubclass(kind, SecretStruct), name


async def test_query_with_nul_is_refused(app: QuartTrio) -> None:
    response = await app.test_client().get("/thing?deviceId=a%00")
    assert response.status_code == 400
    assert "must not contain the character NUL" in (await response.get_json())["error"]
