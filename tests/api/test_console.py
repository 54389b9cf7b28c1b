import hashlib
import json
import re
import struct
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest
from quart_trio import QuartTrio

from brewos_relay.api.app_index import ENTRY
from brewos_relay.api.console_app import MANIFEST, WORKER
from brewos_relay.api.console_pages import PublishedCa
from brewos_relay.api.page_texts import COOKIE, Scripts, read_catalogues, read_pages
from brewos_relay.notifications import KINDS
from support.household import Household, open_household
from support.pages import ROOT

CONSOLE = files("brewos_relay") / "console"
NAMES = sorted(entry.name for entry in CONSOLE.iterdir() if entry.is_file() and entry.name[0] not in "._")
SCRIPTS = {name: (CONSOLE / name).read_text("utf-8") for name in NAMES if name.endswith(".js")}
VENDOR = CONSOLE / "vendor"
LIBRARIES = [f"vendor/uplot/{name}" for name in ("LICENSE.txt", "uPlot.min.css", "uPlot.min.js")]
CATALOGUES = read_catalogues(CONSOLE / "texts")
SOURCES = read_pages(CONSOLE)
"""The pages with their parts, without texts."""
PAGES = {
    "/": "index.html",
    "/login": "login.html",
    "/login/callback": "login.html",
    "/pair": "pair.html",
    "/admin": "admin.html",
    "/settings": "settings.html",
    "/machine/BRW-00000001": "machine.html",
    "/machine/brw-0000000a": "machine.html",
    "/machine/BRW-00000001/shots": "shots.html",
    "/console": "index.html",
    "/console/pair": "pair.html",
    "/console/admin": "admin.html",
    "/console/settings": "settings.html",
    "/console/offline": "offline.html",
    "/console/machine/BRW-00000001": "machine.html",
    "/console/machine/BRW-00000001/shots": "shots.html",
}
# The modules of each page that use elements of the page.
PARTS = {
    "index.html": ["home.js", "machine_list.js", "session_list.js", "header.js"],
    "login.html": ["login.js"],
    "pair.html": ["pair.js"],
    "machine.html": [
        *("machine.js", "readings.js", "shot.js", "commands.js", "log.js", "users.js", "sharing.js"),
        *("activity.js", "about.js", "dom.js", "header.js", "machine_charts.js"),
    ],
    "shots.html": ["shots.js", "shot_list.js", "shot_comparison.js", "dom.js", "header.js"],
    "admin.html": ["admin.js", "dom.js"],
    "settings.html": ["settings.js", "password.js", "push_settings.js"],
    "offline.html": ["offline.js"],
}
# innerHTML and its like would undo the protection against names with markup.
FORBIDDEN = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|javascript:"


def text_of(name: str) -> str:
    return SOURCES[name] if name in SOURCES else (CONSOLE / name).read_text(encoding="utf-8")


def page_in(language: str, name: str) -> str:
    """Return a page as the server sends it."""
    page = SOURCES[name]
    return CATALOGUES[language].render(page, named=Scripts(SCRIPTS).literals(page))


def as_written(page: str) -> str:
    """Return a page without the version and the list of modules that the relay adds."""
    return re.sub(r'<link rel="modulepreload"[^>]*>\n|/files/[0-9a-f]{16}(?=/)', "", page)


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    root = tmp_path / "dist"
    root.mkdir()
    (root / "index.html").write_bytes(b"the app")
    return root


@pytest.mark.parametrize(("path", "name"), PAGES.items())
async def test_pages_are_served_without_a_redirect(app: QuartTrio, path: str, name: str) -> None:
    response = await app.test_client().get(f"{path}?id=BRW-00000001&token=x&share=true")
    assert response.status_code == 200
    assert response.content_type == "text/html; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert as_written(await response.get_data(as_text=True)) == page_in("en", name)


@pytest.mark.parametrize(
    ("accepted", "chosen", "language"),
    [
        ("de-AT,de;q=0.9,en;q=0.8", None, "de"),
        ("fr,en;q=0.5,de;q=0.4", None, "en"),
        ("fr, de;q=0.5", None, "de"),
        ("fr", None, "en"),
        ("*", None, "en"),
        ("", None, "en"),
        ("en", "de", "de"),
        ("de", "en", "en"),
        ("de", "../fr", "de"),
    ],
)
async def test_page_is_in_the_chosen_language_or_the_best_that_the_browser_accepts(
    app: QuartTrio, accepted: str, chosen: str | None, language: str
) -> None:
    headers = {"Accept-Language": accepted} | ({"Cookie": f"{COOKIE}={chosen}"} if chosen else {})
    client = app.test_client(use_cookies=False)
    response = await client.get("/login", headers=headers)
    assert as_written(await response.get_data(as_text=True)) == page_in(language, "login.html")
    assert f'<html lang="{language}">' in page_in(language, "login.html")
    assert response.headers["Content-Language"] == language
    assert response.headers["Vary"] == "Accept-Encoding, Accept-Language, Cookie"
    again = await client.get("/login", headers={**headers, "If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.headers["Vary"]) == (304, "Accept-Encoding, Accept-Language, Cookie")


async def test_languages_of_a_page_have_different_etags(app: QuartTrio) -> None:
    client = app.test_client()
    tags = {
        (await client.get("/login", headers={"Accept-Language": language})).headers["ETag"]
        for language in CATALOGUES
    }
    assert len(tags) == len(CATALOGUES) > 1


@pytest.mark.parametrize(("path", "name"), PAGES.items())
async def test_pages_name_all_modules_in_advance_and_load_files_by_version(
    app: QuartTrio, path: str, name: str
) -> None:
    client = app.test_client()
    page = await (await client.get(path)).get_data(as_text=True)
    first = PARTS[name][0]
    reached, left = {first}, [first]
    while left:
        for imported in re.findall(r'from "\./([\w.]+)"', text_of(left.pop())):
            if imported not in reached:
                reached.add(imported)
                left.append(imported)
    preloaded = re.findall(r'<link rel="modulepreload" href="([^"]+)">', page)
    assert {url.rpartition("/")[2] for url in preloaded} == reached - {first}
    assert len(set(preloaded)) == len(preloaded)
    for url in re.findall(r'(?:src|href)="(/console/[^"]+\.(?:js|css|svg))"', page):
        response = await client.get(url)
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert await response.get_data(as_text=True) == text_of(url.rpartition("/")[2])
    assert not preloaded or page.index("modulepreload") < page.index("<script")


async def test_file_of_another_version_is_revalidated(app: QuartTrio) -> None:
    for name in ("api.js", "vendor/uplot/uPlot.min.js"):
        response = await app.test_client().get(f"/console/files/0123456789abcdef/{name}")
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "no-cache"


def test_modules_are_found_in_all_forms_of_imports() -> None:
    sources = {
        "a.js": """import { one,
  two } from "./b.js";
import "./c.js";
export { three } from "./d.js";
export const four = load("./e.js");
const later = import("./f.js");
""",
        "b.js": 'import { a } from "./a.js";',
        "c.js": 'import { g } from "./g.js";',
        "d.js": "",
        "f.js": "",
        "g.js": "",
    }
    page = '<script type="module" src="/console/a.js"></script>'
    scripts = Scripts(sources)
    assert set(scripts.of_page(page)) == {"a.js", "b.js", "c.js", "d.js", "g.js"}
    assert set(scripts.of_page(page, later=True)) == set(sources)


def test_parts_of_pages_may_have_parts(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "page.html").write_text("{{>frame}}\n<p>\n{{>small}}\n")
    (tmp_path / "parts" / "frame.html").write_text("<body>\n{{>small}}\n")
    (tmp_path / "parts" / "small.html").write_text("<br>\n")
    assert read_pages(tmp_path) == {"page.html": "<body>\n<br>\n<p>\n<br>\n"}
    (tmp_path / "parts" / "small.html").unlink()
    with pytest.raises(KeyError, match="small"):
        read_pages(tmp_path)


async def test_range_of_a_page_can_be_requested(app: QuartTrio) -> None:
    client = app.test_client()
    content = await (await client.get("/console")).get_data()
    response = await client.get("/console", headers={"Range": "bytes=2-9"})
    assert (response.status_code, await response.get_data()) == (206, content[2:10])
    assert response.headers["Content-Range"] == f"bytes 2-9/{len(content)}"
    behind = await client.get("/console", headers={"Range": "bytes=9999999-"})
    assert (behind.status_code, await behind.get_data()) == (416, b"")


async def test_scripts_and_styles_of_pages_are_served(app: QuartTrio) -> None:
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "png": "image/png"}
    kinds["txt"] = "text/plain"
    pages = {WORKER, *(name for name in NAMES if name.endswith(".html"))}
    for name in {*NAMES, *LIBRARIES} - pages:
        response = await app.test_client().get(f"/console/{name}")
        assert response.status_code == 200, name
        assert (response.content_type or "").partition(";")[0] == kinds[name.rpartition(".")[2]], name
        # Manifests name icons, which must not change their URLs.
        cache = "public, max-age=86400" if name.endswith(".png") else "no-cache"
        assert response.headers["Cache-Control"] == cache, name
        assert await response.get_data() == (CONSOLE / name).read_bytes(), name
        known = {"If-None-Match": response.headers["ETag"]}
        again = await app.test_client().get(f"/console/{name}", headers=known)
        assert again.status_code == 304, name
        assert again.headers["Cache-Control"] == cache, name


UNKNOWN_PATHS: Final = (
    "/console/none.js",
    "/console/index.html",
    "/console/machine.html",
    "/console/machine",
    "/console/machine/x",
    "/machine",
    "/machine/",
    "/machine/BRW-1",
    "/machine/BRW-00000001/more",
    "/console/login.html",
    "/console/__init__.py",
    "/console/../api/app.py",
    "/console/more/style.css",
    "/console/files/0123456789abcdef/login.html",
    "/console/files/0123456789abcdef/none.js",
    "/console/files",
    "/console/texts/en.json",
    "/console/vendor/uplot/README.md",
    "/console/vendor/uplot",
    "/pair/more",
    "/nothing",
)


async def test_unknown_paths_are_not_found(app: QuartTrio) -> None:
    for path in UNKNOWN_PATHS:
        response = await app.test_client().get(path)
        assert response.status_code == 404, path
        assert response.content_type == "text/plain; charset=utf-8", path


@pytest.mark.parametrize(("language", "title"), [("en", "Page not found"), ("de", "Seite nicht gefunden")])
async def test_browser_gets_a_page_with_a_way_back_for_an_unknown_path(
    app: QuartTrio, language: str, title: str
) -> None:
    headers = {"Accept": "text/html,*/*;q=0.8", "Accept-Language": language}
    response = await app.test_client().get("/nothing/here", headers=headers)
    assert response.status_code == 404
    page = await response.get_data(as_text=True)
    assert f"<h1>{title}</h1>" in page
    assert '<a class="button" href="/">' in page
    assert "style-src 'self'" in response.headers["Content-Security-Policy"]
    assert "Accept" in response.headers["Vary"].split(", ")
    api = await app.test_client().get("/api/nothing", headers=headers)
    assert (api.status_code, api.content_type) == (404, "application/json")
    script = await app.test_client().get("/console/none.js", headers={"Accept": "*/*"})
    assert script.content_type == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/login", "/pair", "/console/style.css"])
async def test_pages_can_only_be_read(app: QuartTrio, path: str) -> None:
    assert (await app.test_client().post(path)).status_code == 405


async def test_besides_a_web_app_only_login_pair_and_console_are_served(tmp_path: Path, dist: Path) -> None:
    async with open_household(tmp_path, web_dist_path=dist) as house:
        client = house.app.test_client()
        for path in ("/", "/pair/more", "/machine/BRW-00000001", "/admin", "/login/more"):
            assert (await (await client.get(path)).get_data(as_text=True)).endswith("the app")
        below = ("/console", "/console/pair", "/console/admin", "/console/machine/BRW-00000001")
        for path in ("/login", "/login?expired=true", "/pair?id=x&token=y", *below):
            response = await client.get(path)
            assert response.status_code == 200
            page = as_written(await response.get_data(as_text=True))
            assert page == page_in("en", PAGES[path.partition("?")[0]])
        assert (await client.get("/console/login.js")).status_code == 200
        assert (await client.get("/console/none.js")).status_code == 404
        assert (await (await client.get("/api/info")).get_json())["webApp"] is True


async def test_info_tells_if_there_is_no_web_app(house: Household) -> None:
    assert (await (await house.app.test_client().get("/api/info")).get_json())["webApp"] is False


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".html")])
def test_pages_have_no_inline_code_and_no_broken_references(name: str) -> None:
    page = text_of(name)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", page)
    assert '<html lang="{{language}}">' in page
    assert "<title>" in page
    for path in re.findall(r'(?:src|href)="([^"?#]+)', page):
        assert path.startswith("/")
        assert not path.startswith("//")
        assert (
            path in (*PAGES, "/ca.crt", f"/console/{MANIFEST}") or path.removeprefix("/console/") in NAMES
        ), path


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".html")])
def test_every_field_has_a_label_and_every_id_is_unique(name: str) -> None:
    page = text_of(name)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    labelled = re.findall(r'<label for="([^"]+)"', page)
    assert set(labelled) <= set(ids)
    for field in re.findall(r"<input[^>]+>", page):
        match = re.search(r'\sid="([^"]+)"', field)
        assert match is not None
        assert match[1] in labelled or "aria-label=" in field


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".js")])
def test_scripts_import_existing_modules_and_never_parse_html(name: str) -> None:
    script = text_of(name)
    for path, names in re.findall(r'from "(\./([^"]+))"', script):
        assert path == f"./{names}"
        assert names in [*NAMES, *LIBRARIES]
    for listed, module in re.findall(r'import \{([^}]+)\} from "\./([^"]+)"', script):
        for one in (part.strip() for part in listed.split(",")):
            assert re.search(rf"export (?:async )?(?:function|class|const) {one}\b", text_of(module)), one
    assert not re.search(FORBIDDEN, script)
    assert not re.search(r"https?://", script)


@pytest.mark.parametrize(("name", "modules"), PARTS.items())
def test_element_ids_in_scripts_exist_in_the_pages(name: str, modules: list[str]) -> None:
    page = page_in("en", name)
    for module in modules:
        for one in re.findall(r'byId\("([^"]+)"\)', text_of(module)):
            assert f'id="{one}"' in page, (module, one)


def test_every_module_is_used_by_a_page() -> None:
    reached, left = set[str](), [modules[0] for modules in PARTS.values()]
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += re.findall(r'(?:from |import\()"\./([\w.]+)"', text_of(name))
    assert reached | {ENTRY, WORKER} == {name for name in NAMES if name.endswith(".js")}


def test_console_loads_nothing_from_other_sites() -> None:
    for name in (name for name in NAMES if not name.endswith(".png")):
        found = set(re.findall(r"https?://[^\s\"')]+", text_of(name)))
        assert found <= {"http://www.w3.org/2000/svg"}, name


def test_library_is_the_published_one_with_its_licence() -> None:
    notes = (VENDOR / "uplot" / "README.md").read_text("utf-8")
    sums = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", notes, re.M)}
    published = {
        "dist/uPlot.iife.min.js": text_of("vendor/uplot/uPlot.min.js").removesuffix(
            "export default uPlot;\n"
        ),
        "dist/uPlot.min.css": text_of("vendor/uplot/uPlot.min.css"),
        "LICENSE": text_of("vendor/uplot/LICENSE.txt"),
    }
    for name, content in published.items():
        assert hashlib.sha256(content.encode()).hexdigest() == sums[name], name
    version = re.findall(r"uPlot \(v([\d.]+)\)", published["dist/uPlot.iife.min.js"])[0]
    assert notes.startswith(f"# uPlot {version}\n")
    assert "MIT License" in published["LICENSE"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "MIT" in project["license"]
    assert "src/brewos_relay/console/vendor/*/LICENSE.txt" in project["license-files"]
    assert not re.search(FORBIDDEN, published["dist/uPlot.iife.min.js"])


async def test_ca_can_be_installed_from_a_page_with_its_fingerprint(tmp_path: Path, dist: Path) -> None:
    ca = PublishedCa(b"-----BEGIN CERTIFICATE-----", "AB:CD")
    for app in (None, dist):
        (folder := tmp_path / str(app is None)).mkdir()
        async with open_household(folder, web_dist_path=app, local_ca=lambda: ca) as house:
            page = await house.app.test_client().get("/ca")
            assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
            assert "<code>AB:<wbr>CD</code>" in await page.get_data(as_text=True)
            german = await house.app.test_client().get("/ca", headers={"Accept-Language": "de"})
            assert "<code>AB:<wbr>CD</code>" in (text := await german.get_data(as_text=True))
            assert "Diesem Server vertrauen" in text
            assert "script-src 'self'" in page.headers["Content-Security-Policy"]
            file = await house.app.test_client().get("/ca.crt")
            assert (file.status_code, await file.get_data()) == (200, ca.pem)
            assert file.content_type == "application/x-x509-ca-cert"


async def test_server_without_a_local_ca_has_no_page_for_it(app: QuartTrio) -> None:
    for path in ("/ca", "/ca.crt"):
        assert (await app.test_client().get(path)).status_code == 404


@pytest.mark.parametrize("language", CATALOGUES)
async def test_manifest_names_existing_icons_and_pages(tmp_path: Path, dist: Path, language: str) -> None:
    for app in (None, dist):
        (folder := tmp_path / str(app is None)).mkdir()
        async with open_household(folder, web_dist_path=app) as house:
            client = house.app.test_client()
            response = await client.get(f"/console/{MANIFEST}", headers={"Accept-Language": language})
            assert response.content_type == "application/manifest+json"
            manifest = await response.get_json(force=True)
            assert manifest["lang"] == language
            assert manifest["scope"] == ("/" if app is None else "/console")
            assert (await client.get(manifest["start_url"])).status_code == 200
            for icon in manifest["icons"]:
                content = await (await client.get(icon["src"])).get_data(as_text=False)
                assert content[:8] == b"\x89PNG\r\n\x1a\n"
                width, height = struct.unpack(">II", content[16:24])
                assert icon["sizes"] == f"{width}x{height}"


async def test_service_worker_lists_the_files_of_its_version(app: QuartTrio) -> None:
    client = app.test_client()
    response = await client.get(f"/console/{WORKER}")
    assert response.content_type == "text/javascript; charset=utf-8"
    assert response.headers["Service-Worker-Allowed"] == "/console"
    assert response.headers["Cache-Control"] == "no-cache"
    script = await response.get_data(as_text=True)
    served = json.loads(script.partition("\n")[0].removeprefix("const served = ").removesuffix(";"))
    assert script.endswith(text_of(WORKER))
    page = await (await client.get("/console")).get_data(as_text=True)
    loaded = re.findall(r'(?:src|href)="(/console/files/[^"]+)"', page)
    assert set(loaded) <= set(served["files"])
    for path in served["files"]:
        response = await client.get(path)
        assert (response.status_code, "immutable" in response.headers["Cache-Control"]) == (200, True)
    german = await client.get(f"/console/{WORKER}", headers={"Accept-Language": "de"})
    assert (await german.get_data(as_text=True)) != script


async def test_service_worker_is_given_the_texts_of_each_kind_of_notification() -> None:
    for catalogue in CATALOGUES.values():
        for kind in KINDS.values():
            texts = [catalogue.english[f"notification.{kind.name}{end}"] for end in ("", "-text")]
            assert texts == [kind.title, kind.text]
