import hashlib
import mimetypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from quart import Response
from quart_trio import QuartTrio

from brewos_relay.api import web
from brewos_relay.api.static_content import CONTENT_TYPES
from brewos_relay.errors import SettingsError

MakeApp = Callable[[Path | None], QuartTrio]

INDEX_FILE = b"<!doctype html><html><head><title>app</title>"
# The index page as it is sent: with the relay's script.
INDEX = INDEX_FILE.replace(b"<head>", b'<head><script src="/console/app_entry.js"></script>')
SCRIPT = b"console.log('hello');" * 20_000
SECRET = b"not for the web"


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_bytes(SECRET)
    root = tmp_path / "dist"
    (root / "assets").mkdir(parents=True)
    (root / ".well-known").mkdir()
    (root / "index.html").write_bytes(INDEX_FILE)
    (root / "sw.js").write_bytes(b"self.skipWaiting();")
    (root / "manifest.json").write_bytes(b"{}")
    (root / ".env").write_bytes(SECRET)
    (root / ".well-known" / "web-app-origin-association").write_bytes(b"{}")
    (root / "assets" / "index-3f2a.js").write_bytes(SCRIPT)
    (root / "assets" / "style-77aa.css").write_bytes(b"body{}")
    (root / "assets" / "odd").write_bytes(b"?")
    return root


@pytest.fixture
def app(make_app: MakeApp, dist: Path) -> QuartTrio:
    return make_app(dist)


async def get(app: QuartTrio, path: str, *, method: str = "GET", **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    ask = getattr(app.test_client(), method.lower())
    # The test client normalizes paths. A real server passes on the raw path.
    scope = {"raw_path": path.partition("?")[0].encode()}
    response = await ask(path, headers=named, scope_base=scope)
    assert isinstance(response, Response)
    return response


def open_files() -> list[Path]:
    """Return the open files of this process."""
    return [each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/index.html",
        "/machines",
        "/machines/",
        "/machine/BRW-00000001/stats",
        "/auth/callback",
        "/missing.js",
        "/apiary",
        "//elsewhere",
        "/" + "long" * 500,
        "/caf%C3%A9/%F0%9F%92%A7/%FF",
    ],
)
async def test_every_page_of_the_app_is_its_index(app: QuartTrio, path: str) -> None:
    response = await get(app, path)
    assert response.status_code == 200
    assert await response.get_data() == INDEX
    assert response.content_type == "text/html; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_hashed_assets_are_cached_as_immutable(app: QuartTrio) -> None:
    response = await get(app, "/assets/index-3f2a.js")
    assert response.status_code == 200
    assert await response.get_data() == SCRIPT
    assert response.content_length == len(SCRIPT)
    assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("path", ["/assets/index-0000.js", "/assets/", "/assets/deeper/x.css"])
async def test_missing_asset_is_not_found(app: QuartTrio, path: str) -> None:
    response = await get(app, path)
    assert response.status_code == 404
    assert "immutable" not in response.headers.get("Cache-Control", "")


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/sw.js", "text/javascript; charset=utf-8"),
        ("/assets/style-77aa.css", "text/css; charset=utf-8"),
        ("/manifest.json", "application/json"),
        ("/.well-known/web-app-origin-association", "application/json"),
        ("/assets/odd", "application/octet-stream"),
    ],
)
async def test_types_do_not_depend_on_the_host(
    app: QuartTrio, monkeypatch: pytest.MonkeyPatch, path: str, content_type: str
) -> None:
    monkeypatch.setitem(mimetypes.types_map, ".js", "text/plain")
    response = await get(app, path)
    assert response.status_code == 200
    assert response.content_type == content_type


async def test_service_worker_is_always_revalidated(app: QuartTrio) -> None:
    assert (await get(app, "/sw.js")).headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/assets/../../secret.txt",
        "/assets/..%2f..%2fsecret.txt",
        "/..%2Fsecret.txt",
        "/%2e%2e/secret.txt",
        "/assets/%2e%2e/%2e%2e/secret.txt",
        "/..%5csecret.txt",
        "/..\\secret.txt",
        "/machine/a%2Fb",
        "/secret.txt%00.html",
        "/%0d%0aSet-Cookie:x",
        "/.env",
        "/.git/config",
        "/./index.html",
    ],
)
async def test_unsafe_paths_are_refused(app: QuartTrio, path: str) -> None:
    response = await get(app, path)
    assert response.status_code == 404
    assert SECRET not in await response.get_data()


async def test_an_absolute_path_leads_nowhere(app: QuartTrio, dist: Path) -> None:
    response = await get(app, f"/{dist.parent / 'secret.txt'}")
    assert await response.get_data() == INDEX


@pytest.mark.parametrize("path", ["/leak.txt", "/assets/leak.txt", "/out/secret.txt", "/loop"])
async def test_links_out_of_the_folder_are_refused(app: QuartTrio, dist: Path, path: str) -> None:
    for name in ("leak.txt", "assets/leak.txt"):
        (dist / name).symlink_to(dist.parent / "secret.txt")
    (dist / "out").symlink_to(dist.parent)
    (dist / "loop").symlink_to(dist / "loop")
    assert SECRET not in await (await get(app, path)).get_data()


@pytest.mark.parametrize("path", ["/public.txt", "/settings/config", "/chain.txt", "/well/known"])
async def test_links_to_private_files_are_refused(app: QuartTrio, dist: Path, path: str) -> None:
    (dist / ".git").mkdir()
    (dist / ".git" / "config").write_bytes(SECRET)
    (dist / "assets" / ".well-known").mkdir()
    (dist / "assets" / ".well-known" / "known").write_bytes(SECRET)
    (dist / "public.txt").symlink_to(".env")
    (dist / "settings").symlink_to(".git")
    (dist / "chain.txt").symlink_to("public.txt")
    (dist / "well").symlink_to("assets/.well-known")
    assert await (await get(app, path)).get_data() == INDEX


@pytest.mark.parametrize(
    "path",
    [
        *("/.env", "/%2eenv", "/%2Eenv", "/assets//.env", "/assets/.well-known/known", "/.well-known/.env"),
        *("/.git/config", "/.git%2fconfig", "/.well-known/.well-known", "/.Well-Known/x", "/..well-known"),
    ],
)
async def test_a_name_that_begins_with_a_dot_is_refused(app: QuartTrio, dist: Path, path: str) -> None:
    for folder in ("assets/.well-known", ".git", ".Well-Known"):
        (dist / folder).mkdir()
        for name in ("known", "config", "x"):
            (dist / folder / name).write_bytes(SECRET)
    (dist / ".well-known" / ".env").write_bytes(SECRET)
    (dist / ".well-known" / ".well-known").write_bytes(SECRET)
    assert (await get(app, path)).status_code == 404


async def test_index_that_links_out_of_the_folder_is_a_wrong_setting(make_app: MakeApp, dist: Path) -> None:
    (dist / "index.html").unlink()
    (dist / "index.html").symlink_to(dist.parent / "secret.txt")
    with pytest.raises(SettingsError, match="leads out"):
        make_app(dist)


@pytest.mark.parametrize("swapped", ["sw.js", "assets"])
async def test_link_created_between_check_and_open_is_refused(
    app: QuartTrio, dist: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    elsewhere = dist.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "style-77aa.css").write_bytes(SECRET)
    target = elsewhere if swapped == "assets" else dist.parent / "secret.txt"
    open_below = web._open_below

    def swap_first(root: Path, names: Sequence[str]) -> int:
        if not (dist / swapped).is_symlink():
            (dist / swapped).rename(dist.parent / "moved")
            (dist / swapped).symlink_to(target)
        return open_below(root, names)

    monkeypatch.setattr(web, "_open_below", swap_first)
    path = "/assets/style-77aa.css" if swapped == "assets" else "/sw.js"
    response = await get(app, path)
    assert SECRET not in await response.get_data()
    assert response.status_code == (404 if swapped == "assets" else 200)


async def test_file_replaced_after_the_check_is_not_sent(
    app: QuartTrio, dist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = web._find

    def find_and_swap(root: Path, path: str) -> web._File | None:
        found = find(root, path)
        (dist / "sw.js").unlink()
        (dist / "sw.js").write_bytes(SECRET)
        return found

    monkeypatch.setattr(web, "_find", find_and_swap)
    # The head was sent. The connection ends here.
    with pytest.raises(ExceptionGroup) as problem:
        await get(app, "/sw.js")
    assert problem.value.subgroup(OSError) is not None


async def test_no_file_stays_open(app: QuartTrio, dist: Path) -> None:
    (dist / "leak").symlink_to("/etc")
    first = await get(app, "/sw.js")
    for path in ("/sw.js", "/", "/assets/style-77aa.css", "/assets", "/.well-known/x", "/leak/passwd"):
        await get(app, path)
        await get(app, path, method="HEAD")
        await get(app, path, If_None_Match=first.headers["ETag"])
    assert [file for file in open_files() if file.is_relative_to(dist)] == []


async def test_links_inside_the_folder_and_a_linked_root_are_followed(
    make_app: MakeApp, dist: Path, tmp_path: Path
) -> None:
    (dist / "latest.js").symlink_to(dist / "sw.js")
    (tmp_path / "current").symlink_to(dist)
    response = await get(make_app(tmp_path / "current"), "/latest.js")
    assert await response.get_data() == b"self.skipWaiting();"


async def test_special_files_are_not_served(app: QuartTrio, dist: Path) -> None:
    os.mkfifo(dist / "pipe")
    assert await (await get(app, "/pipe")).get_data() == INDEX


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/machines", "/sw.js"])
async def test_pages_can_only_be_read(app: QuartTrio, method: str, path: str) -> None:
    response = await get(app, path, method=method)
    assert response.status_code == 405
    assert "GET" in response.headers["Allow"]


async def test_head_is_answered_like_get(app: QuartTrio) -> None:
    response = await get(app, "/assets/index-3f2a.js", method="HEAD")
    assert response.status_code == 200
    assert response.content_length == len(SCRIPT)


@pytest.mark.parametrize("path", ["/", "/machines", "/sw.js", "/assets/index-3f2a.js"])
async def test_cached_file_is_a_304(app: QuartTrio, path: str) -> None:
    first = await get(app, path)
    again = await get(app, path, If_None_Match=first.headers["ETag"])
    assert again.status_code == 304
    assert await again.get_data() == b""
    assert again.headers["Cache-Control"] == first.headers["Cache-Control"]


async def test_a_changed_file_is_sent_again(app: QuartTrio, dist: Path) -> None:
    first = await get(app, "/")
    (dist / "index.html").write_bytes(INDEX_FILE + b"!")
    again = await get(app, "/", If_None_Match=first.headers["ETag"])
    assert again.status_code == 200
    assert await again.get_data() == INDEX + b"!"


async def test_files_on_disk_stay_unmodified_and_the_index_has_an_etag_of_its_own(
    app: QuartTrio, dist: Path
) -> None:
    response = await get(app, "/index.html")
    assert await response.get_data() == INDEX
    assert (dist / "index.html").read_bytes() == INDEX_FILE
    assert response.content_length == len(INDEX)
    assert response.headers["ETag"] == f'"{hashlib.sha256(INDEX).hexdigest()[:32]}"'
    part = await get(app, "/", Range="bytes=0-14")
    assert (part.status_code, await part.get_data()) == (206, INDEX[:15])


async def test_huge_index_is_sent_as_it_is(app: QuartTrio, dist: Path) -> None:
    huge = INDEX_FILE + b" " * 2**20
    (dist / "index.html").write_bytes(huge)
    assert await (await get(app, "/")).get_data() == huge


async def test_index_replaced_after_the_check_is_not_sent(
    app: QuartTrio, dist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = web._find

    def find_and_swap(root: Path, path: str) -> web._File | None:
        found = find(root, path)
        (dist / "index.html").unlink()
        (dist / "index.html").write_bytes(SECRET)
        return found

    monkeypatch.setattr(web, "_find", find_and_swap)
    response = await get(app, "/index.html")
    assert response.status_code == 503
    assert SECRET not in await response.get_data()


async def test_pair_and_login_are_pages_of_the_relay(app: QuartTrio) -> None:
    for path in ("/pair", "/pair?id=BRW-00000001&token=x&share=true", "/login", "/console/pair"):
        response = await get(app, path)
        assert response.status_code == 200
        assert b"brewos-relay" in await response.get_data()


@pytest.mark.parametrize(
    ("wanted", "first", "stop"),
    [
        ("bytes=0-3", 0, 4),
        ("bytes=-5", len(SCRIPT) - 5, len(SCRIPT)),
        ("bytes=2-999999999", 2, len(SCRIPT)),
        (f"bytes=1-{web.READ_BYTES + 1}", 1, web.READ_BYTES + 2),
    ],
)
async def test_range_of_a_file_can_be_requested(app: QuartTrio, wanted: str, first: int, stop: int) -> None:
    response = await get(app, "/assets/index-3f2a.js", Range=wanted)
    assert response.status_code == 206
    assert await response.get_data() == SCRIPT[first:stop]
    assert response.content_length == stop - first
    assert response.headers["Content-Range"] == f"bytes {first}-{stop - 1}/{len(SCRIPT)}"
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert response.content_type == "text/javascript; charset=utf-8"
    whole = await get(app, "/assets/index-3f2a.js")
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert whole.headers["ETag"] == response.headers["ETag"]


@pytest.mark.parametrize("wanted", ["bytes=0-1,4-5", "bytes=9-2", "bytes=0-", "lines=1-2", "x"])
async def test_other_ranges_get_the_whole_file(app: QuartTrio, wanted: str) -> None:
    response = await get(app, "/", Range=wanted)
    assert response.status_code == 200
    assert await response.get_data() == INDEX
    assert "Content-Range" not in response.headers


async def test_a_range_behind_the_end_is_refused(app: QuartTrio) -> None:
    response = await get(app, "/assets/style-77aa.css", Range="bytes=6-")
    assert response.status_code == 416
    assert await response.get_data() == b""
    assert response.headers["Content-Range"] == "bytes */6"
    assert response.headers["Cache-Control"] == "no-store"


async def test_if_range_must_match_the_entity_tag(app: QuartTrio) -> None:
    tag = (await get(app, "/assets/style-77aa.css")).headers["ETag"]
    same = await get(app, "/assets/style-77aa.css", Range="bytes=4-", If_Range=tag)
    assert (same.status_code, await same.get_data()) == (206, b"{}")
    for other in ('"other"', f"W/{tag}", "Wed, 21 Oct 2015 07:28:00 GMT", ""):
        response = await get(app, "/assets/style-77aa.css", Range="bytes=4-", If_Range=other)
        assert (response.status_code, await response.get_data()) == (200, b"body{}")
    known = await get(app, "/assets/style-77aa.css", Range="bytes=4-", If_None_Match=tag)
    assert known.status_code == 304
    assert "Content-Range" not in known.headers


@pytest.mark.parametrize("wanted", ["bytes=0-3", "bytes=999-"])
async def test_only_get_has_ranges(app: QuartTrio, wanted: str) -> None:
    response = await get(app, "/assets/style-77aa.css", method="HEAD", Range=wanted)
    assert response.status_code == 200
    assert response.content_length == 6


async def test_a_range_reaches_no_private_file(app: QuartTrio, dist: Path) -> None:
    (dist / "link.txt").symlink_to(dist.parent / "secret.txt")
    for path in ("/.env", "/link.txt"):
        response = await get(app, path, Range="bytes=0-3")
        assert SECRET[:4] not in await response.get_data()


async def test_missing_index_during_replacement_is_a_503(app: QuartTrio, dist: Path) -> None:
    (dist / "index.html").unlink()
    assert (await get(app, "/machines")).status_code == 503
    assert (await get(app, "/sw.js")).status_code == 200


async def test_a_folder_without_an_app_is_a_wrong_setting(make_app: MakeApp, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"WEB_DIST_PATH.*index\.html"):
        make_app(tmp_path)


async def test_the_api_is_not_hidden_by_an_app(app: QuartTrio, dist: Path) -> None:
    (dist / "api").mkdir()
    (dist / "api" / "x").write_bytes(b"from the app")
    response = await get(app, "/api/x")
    assert response.status_code == 404
    assert response.content_type == "application/json"


def test_suffixes_of_content_types_are_in_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in CONTENT_TYPES)
