import gzip
import os
import threading
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest
import trio
from quart import Response
from quart_trio import QuartTrio

from brewos_relay.api import content_codings, web
from brewos_relay.api.content_codings import BROTLI, GZIP, CompressedContents
from support.household import Household

MakeApp = Callable[[Path | None], QuartTrio]

SCRIPT = b"console.log('hello');\n" * 1000
STYLE = "/console/style.css"
DECODE = {"br": brotli.decompress, "gzip": gzip.decompress, None: bytes}


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    root = tmp_path / "dist"
    (root / "assets").mkdir(parents=True)
    (root / "index.html").write_bytes(b"<!doctype html><html><head>" + b"<p>app</p>" * 100)
    (root / "assets" / "app.js").write_bytes(SCRIPT)
    (root / "assets" / "small.js").write_bytes(b"{}")
    (root / "assets" / "cup.png").write_bytes(b"\0" * 5000)
    return root


@pytest.fixture
def app(make_app: MakeApp, dist: Path) -> QuartTrio:
    return make_app(dist)


async def get(app: QuartTrio, path: str, accepted: str | None = "gzip, br", **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if accepted is not None:
        named["Accept-Encoding"] = accepted
    return await app.test_client().get(path, headers=named, scope_base={"raw_path": path.encode()})


async def body_of(answer: Response) -> bytes:
    content = await answer.get_data(as_text=False)
    assert isinstance(content, bytes)
    return content


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip, deflate, br, zstd", "br"),
        ("gzip, deflate", "gzip"),
        ("GZIP", "gzip"),
        ("br;q=0.5, gzip", "gzip"),
        ("br;q=0, *", "gzip"),
        ("*", "br"),
        ("identity, br;q=0.9", None),
        ("br;q=0", None),
        ("deflate", None),
        ("", None),
        (None, None),
    ],
)
async def test_coding_follows_from_accept_encoding(
    app: QuartTrio, accepted: str | None, coding: str | None
) -> None:
    for path in (STYLE, "/login", "/", "/assets/app.js"):
        plain = await (await get(app, path, None)).get_data()
        answer = await get(app, path, accepted)
        assert (answer.status_code, answer.headers.get("Content-Encoding")) == (200, coding), path
        content = await body_of(answer)
        assert DECODE[coding](content) == plain, path
        assert answer.content_length == len(content), path
        assert "Accept-Encoding" in answer.headers["Vary"].split(", "), path
        if coding is not None:
            assert len(content) < len(plain), path


@pytest.mark.parametrize("accepted", ["identity;q=0", "*;q=0", "deflate, identity;q=0.0"])
async def test_answer_without_a_coding_can_be_excluded(app: QuartTrio, accepted: str) -> None:
    for path in (STYLE, "/assets/app.js", "/assets/cup.png"):
        assert (await get(app, path, accepted)).status_code == 406, path
        allowed = await get(app, path, f"{accepted}, br")
        assert allowed.status_code == (406 if path.endswith(".png") else 200), path


@pytest.mark.parametrize("path", [STYLE, "/assets/app.js"])
async def test_each_coding_has_an_entity_tag_of_its_own(app: QuartTrio, path: str) -> None:
    tags = [(await get(app, path, accepted)).headers["ETag"] for accepted in ("br", "gzip", "identity")]
    assert len(set(tags)) == 3
    for accepted, tag in zip(("br", "gzip", "identity"), tags, strict=True):
        for sent in tags:
            again = await get(app, path, accepted, If_None_Match=sent)
            assert again.status_code == (304 if sent == tag else 200)
            assert again.headers["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize("path", [STYLE, "/assets/app.js"])
async def test_ranges_are_parts_of_the_original(app: QuartTrio, path: str) -> None:
    plain = await (await get(app, path, None)).get_data()
    part = await get(app, path, "br, gzip", Range="bytes=2-9")
    assert (part.status_code, await part.get_data()) == (206, plain[2:10])
    assert "Content-Encoding" not in part.headers
    assert part.headers["Vary"] == "Accept-Encoding"
    # The part of a compressed answer is not continued with the original.
    compressed = await get(app, path, "br")
    assert "Accept-Ranges" not in compressed.headers
    rest = await get(app, path, "br", Range="bytes=2-", If_Range=compressed.headers["ETag"])
    assert (rest.status_code, await rest.get_data()) == (200, plain)


@pytest.mark.parametrize("path", [STYLE, "/assets/app.js"])
async def test_head_has_the_length_of_the_compressed_answer(app: QuartTrio, path: str) -> None:
    headers = {"Accept-Encoding": "br"}
    head = await app.test_client().head(path, headers=headers, scope_base={"raw_path": path.encode()})
    answer = await get(app, path, "br")
    assert (head.content_length, head.headers["ETag"]) == (answer.content_length, answer.headers["ETag"])


@pytest.mark.parametrize("path", ["/assets/cup.png", "/assets/small.js"])
async def test_what_does_not_become_smaller_is_sent_as_it_is(app: QuartTrio, path: str) -> None:
    answer = await get(app, path)
    assert answer.status_code == 200
    assert "Content-Encoding" not in answer.headers


async def test_answers_of_the_api_are_never_compressed(house: Household) -> None:
    for path in ("/api/info", "/api/auth/me", "/api/none", "/none"):
        answer = await get(house.app, path)
        assert "Content-Encoding" not in answer.headers


async def test_compressed_file_beside_a_file_is_sent(app: QuartTrio, dist: Path) -> None:
    (dist / "assets" / "app.js.br").write_bytes(brotli.compress(b"from the build"))
    answer = await get(app, "/assets/app.js")
    assert answer.content_type == "text/javascript; charset=utf-8"
    assert answer.headers["Content-Encoding"] == "br"
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert brotli.decompress(await body_of(answer)) == b"from the build"
    # It is one of several: a browser without Brotli gets the file that the relay compresses.
    other = await get(app, "/assets/app.js", "gzip")
    assert gzip.decompress(await body_of(other)) == SCRIPT


async def test_outdated_and_foreign_compressed_files_are_not_sent(app: QuartTrio, dist: Path) -> None:
    (dist / "assets" / "app.js.br").write_bytes(brotli.compress(b"outdated"))
    os.utime(dist / "assets" / "app.js.br", (1, 1))
    (dist.parent / "secret").write_bytes(gzip.compress(b"secret"))
    (dist / "assets" / "app.js.gz").symlink_to(dist.parent / "secret")
    for accepted, coding in (("br", "br"), ("gzip", "gzip")):
        assert DECODE[coding](await body_of(await get(app, "/assets/app.js", accepted))) == SCRIPT


async def test_large_file_is_compressed_by_the_build_or_not_at_all(
    app: QuartTrio, dist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MOST_INPUT_BYTES", len(SCRIPT) - 1)
    assert "Content-Encoding" not in (await get(app, "/assets/app.js")).headers
    (dist / "assets" / "app.js.gz").write_bytes(gzip.compress(b"huge"))
    answer = await get(app, "/assets/app.js")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(await body_of(answer)) == b"huge"


async def test_changed_file_is_compressed_again(app: QuartTrio, dist: Path) -> None:
    first = await get(app, "/assets/app.js")
    (dist / "assets" / "app.js").write_bytes(SCRIPT + b"more")
    again = await get(app, "/assets/app.js", If_None_Match=first.headers["ETag"])
    assert brotli.decompress(await body_of(again)) == SCRIPT + b"more"


async def test_without_brotli_gzip_is_used(app: QuartTrio, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("content_codings", "static_content", "web"):
        monkeypatch.setattr(f"brewos_relay.api.{module}.CODINGS", (GZIP,))
    for path in (STYLE, "/assets/app.js"):
        assert (await get(app, path)).headers["Content-Encoding"] == "gzip"


async def test_content_is_compressed_once_for_all_requests() -> None:
    compressed, reads = CompressedContents(), []

    def read() -> bytes:
        reads.append(threading.current_thread())
        return SCRIPT

    async def ask(coding: str) -> None:
        content = await compressed.find("content", coding, read)
        assert content is not None
        assert DECODE[coding](content) == SCRIPT

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask, BROTLI)
                nursery.start_soon(ask, GZIP)
    assert len(reads) == 2
    assert threading.main_thread() not in reads


async def test_failure_to_read_is_raised_and_forgotten() -> None:
    compressed = CompressedContents()

    def fail() -> bytes:
        raise OSError("replaced")

    with pytest.raises(OSError, match="replaced"):
        await compressed.find("content", GZIP, fail)
    assert await compressed.find("content", GZIP, lambda: SCRIPT) == gzip.compress(SCRIPT, mtime=0)


async def test_least_recently_used_contents_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    async def ask(store: CompressedContents, number: int) -> None:
        def read() -> bytes:
            reads.append(number)
            return os.urandom(100) + bytes(1000)

        await store.find(number, GZIP, read)

    by_size = CompressedContents(most_bytes=300)
    monkeypatch.setattr(content_codings, "_MOST_KEPT", 2)
    by_number = CompressedContents()
    for store in (by_size, by_number):
        reads.clear()
        for number in (1, 2, 1, 3, 1, 2):
            await ask(store, number)
        assert reads == [1, 2, 3, 2]
