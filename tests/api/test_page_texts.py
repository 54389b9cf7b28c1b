"""The catalogue of texts: complete in each language, and without texts beside it."""

import ast
import json
import re
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path

import pytest

import brewos_relay
from brewos_relay.api.page_texts import DEFAULT, Scripts, Text, read_catalogues, read_pages
from brewos_relay.api.payloads import as_sentence
from brewos_relay.api.request_limits import FairRate, RequestLimit, RequestLimits
from brewos_relay.auth.passwords import check_password
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import QuotaReached, TooManyUnproven, UserExists
from brewos_relay.registry.emails import normal_email

CONSOLE = files("brewos_relay") / "console"
CATALOGUES = read_catalogues(CONSOLE / "texts")
ENGLISH = CATALOGUES[DEFAULT].texts
OTHERS = [language for language in CATALOGUES if language != DEFAULT]
PAGES = read_pages(CONSOLE)
SCRIPTS = {entry.name: entry.read_text("utf-8") for entry in CONSOLE.iterdir() if entry.name.endswith(".js")}
MODULES = Scripts(SCRIPTS)

MARK = re.compile(r"\{\{\{?([\w.-]+)\}?\}\}")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
ELEMENT = re.compile(r"<[^>]+>")
# Names, units and signs, which no language translates.
UNTRANSLATED = {"brewos-relay", "bar", "W", "s", "g", "g/s", "°C", "\u2013", "·"}


def forms_of(text: Text) -> list[str]:
    return [text] if isinstance(text, str) else list(text.values())


def keys_in(source: str) -> set[str]:
    """Find the keys that a script names: literals whose group exists in the catalogue."""
    groups = {key.partition(".")[0] for key in ENGLISH}
    literals = [text for text, is_template in literals_of(source) if not is_template]
    return {
        text for text in literals if re.fullmatch(r"[a-z]+\.[\w-]+", text) and text.split(".")[0] in groups
    }


TOKEN = re.compile(
    r"(?P<comment>//[^\n]*|/\*.*?\*/)"
    r'|(?P<string>"(?:[^"\\\n]|\\.)*")'
    r"|(?P<template>`(?:[^`\\]|\\.)*`)"
    r"|(?<=[(,=:!&|? ])/(?![/*])(?:[^/\\\n\[]|\\.|\[(?:[^\]\\]|\\.)*\])+/",  # a regular expression
    re.S,
)


def literals_of(source: str) -> list[tuple[str, bool]]:
    """Return the string literals of a script, and the fixed parts of its templates."""
    found = []
    for token in TOKEN.finditer(source):
        if token["string"]:
            found.append((json.loads(token["string"].replace("\\'", "'")), False))
        elif token["template"]:
            inner = token["template"][1:-1]
            found += [(part, True) for part in re.split(r"\$\{[^}]*\}*", inner)]
            for nested in re.findall(r"\$\{([^}]*)\}", inner):
                found += literals_of(nested)
    return found


@pytest.mark.parametrize("language", OTHERS)
def test_each_language_has_the_keys_of_the_default_language(language: str) -> None:
    assert set(CATALOGUES[language].texts) == set(ENGLISH)


@pytest.mark.parametrize("language", OTHERS)
def test_each_language_has_the_same_placeholders_and_elements(language: str) -> None:
    for key, text in CATALOGUES[language].texts.items():
        assert isinstance(text, str) == isinstance(ENGLISH[key], str), key
        for form in forms_of(text):
            other = forms_of(ENGLISH[key])[-1]
            assert set(PLACEHOLDER.findall(form)) == set(PLACEHOLDER.findall(other)), key
            assert sorted(ELEMENT.findall(form)) == sorted(ELEMENT.findall(other)), key


@pytest.mark.parametrize("language", CATALOGUES)
def test_texts_are_written_well(language: str) -> None:
    for key, text in CATALOGUES[language].texts.items():
        assert isinstance(text, str) or {"one", "other"} <= set(text), key
        for form in forms_of(text):
            assert form == form.strip() != "", key
            assert "  " not in form, key
            assert "..." not in form, key
    keys = list(CATALOGUES[language].texts)
    assert keys == sorted(keys), "sort the keys, so that changes are easy to review"


def test_each_key_is_used_and_each_used_key_exists() -> None:
    in_pages = {key for page in PAGES.values() for key in MARK.findall(page)} - {"language", "languages"}
    in_scripts = {key for script in SCRIPTS.values() for key in keys_in(script)}
    # Named by the server.
    in_server = {key for key in ENGLISH if key.startswith(("refusal.", "notification."))}
    in_server |= {"language.name", "app.description"}
    assert (in_pages | in_scripts) - set(ENGLISH) == set()
    assert set(ENGLISH) - in_pages - in_scripts - in_server == set()


@pytest.mark.parametrize("name", PAGES)
def test_pages_have_no_text_beside_the_catalogue(name: str) -> None:
    page = MARK.sub("", re.sub(r"<pre>.*?</pre>|<!--.*?-->", "", PAGES[name], flags=re.S))
    visible = [*re.findall(r'(?:aria-label|placeholder|alt|title|label)="([^"]*)"', page)]
    visible += ELEMENT.sub("\n", page).split("\n")
    words = {word for text in visible for word in text.split()}
    assert words - UNTRANSLATED == set()
    # Only scripts fill in values.
    texts = [json.dumps(ENGLISH[key]) for key in MARK.findall(PAGES[name]) if key in ENGLISH]
    assert [text for text in texts if re.search(r"\{\w+\}", text)] == []


# What may look like a sentence: names of browsers, systems and headers, and classes of elements.
LIKE_SENTENCES = {
    *("Edg", "Edge", "OPR", "Opera", "Firefox", "FxiOS", "CriOS", "Chrome", "Safari", "Android", "iPhone"),
    *("iPad", "Windows", "CrOS", "ChromeOS", "Mac OS", "Mac", "Linux", "Google", "Facebook"),
    *(
        "Authorization",
        "Content-Disposition",
        "Content-Type",
        "Cache-Control",
        "TypeError",
        "TimeoutError",
        "PushManager",
        "Notification",
        "Tab",
        "Escape",
        "Enter",
    ),
    *("quiet small", "quiet small bad", "state online", "no access to this device", "bar, g/s", "use strict"),
    *("Bearer ", "data:image/svg+xml,"),
}
# Selectors, media queries, classes, and the texts of exceptions that no page shows.
HIDDEN = re.compile(
    r'(?:querySelector(?:All)?|matchMedia|(?:Range|Type)Error)\((?:"[^"]*"|`[^`]*`)\)|className = `[^`]*`'
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_have_no_text_beside_the_catalogue(name: str) -> None:
    script = HIDDEN.sub("", SCRIPTS[name])
    found = []
    for text, is_template in literals_of(script):
        sentence = re.search(r"[^\W\d_]{2,} +[^\W\d_]{2,}", text) or re.match(r"[A-ZÄÖÜ][a-zäöü]", text)
        in_template = is_template and re.search(r"(?:^| )[^\W\d_]{3,}(?: |[.,:!?]|$)", text)
        if (sentence or in_template) and text not in LIKE_SENTENCES and text[0] != "<":
            found.append(text)
    assert found == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_numbers_temperatures_and_times_are_written_by_one_module(name: str) -> None:
    ours = {
        "format.js": r"toLocale\w+|Intl\.|°",
        "preferences.js": r"Intl\.",
        "texts.js": r"Intl\.",
        "commands.js": "°",
    }
    found = re.findall(r"toLocale\w+|Intl\.|°", re.sub(r"//.*", "", SCRIPTS[name]))
    assert [one for one in found if not re.fullmatch(ours.get(name, "(?!)"), one)] == []


def test_activity_names_existing_commands() -> None:
    table = re.search(r"const COMMANDS = \{(.*?)\};", SCRIPTS["activity.js"], re.S)
    assert table is not None
    known = {rule.name for rule in BREWOS.commands}
    assert set(re.findall(r"(\w+): ", table[1])) <= known


def test_texts_outside_of_the_catalogue_are_found() -> None:
    script = 'say("Try again"); say(`${name} was removed.`); say(text("home.none")); // "Not here"\n'
    assert literals_of(script) == [
        ("Try again", False),
        ("", True),
        (" was removed.", True),
        ("home.none", False),
    ]


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("language", CATALOGUES)
def test_page_has_the_texts_of_its_scripts(name: str, language: str) -> None:
    page = CATALOGUES[language].render(PAGES[name], named=MODULES.literals(PAGES[name]))
    assert not MARK.search(page)
    assert f'<html lang="{language}">' in page
    modules = [SCRIPTS[module] for module in MODULES.of_page(PAGES[name], later=True)]
    if not modules:
        return
    match = re.search(r'<script type="application/json" id="texts">(.*?)</script>', page, re.S)
    assert match is not None
    assert set(json.loads(match[1])["texts"]) == {key for module in modules for key in keys_in(module)}


def test_texts_of_scripts_cannot_end_their_block() -> None:
    catalogue = read_catalogues(CONSOLE / "texts")[DEFAULT]
    evil = type(catalogue)(DEFAULT, {"a.b": "</script><script>"}, {}, {})
    page = evil.render('<script type="module" src="/console/x.js">', named={"a.b"})
    assert page.count("</script>") == 1


def test_text_with_markup_characters_is_escaped() -> None:
    catalogue = type(CATALOGUES[DEFAULT])(
        DEFAULT, {"a.b": 'a "b" <c> & d', "e.f": "<b>e</b>"}, {}, {"de": "<Deutsch>"}
    )
    assert catalogue.render("{{a.b}} {{{e.f}}}", named=()) == ("a &quot;b&quot; &lt;c&gt; &amp; d <b>e</b>")
    assert catalogue.render("{{language}} {{languages}}", named=()) == (
        'en <option value="de" lang="de">&lt;Deutsch&gt;</option>'
    )
    with pytest.raises(KeyError):
        catalogue.render("{{a.c}}", named=())
    with pytest.raises(KeyError):
        type(catalogue)(DEFAULT, {"a.b": {"one": "1", "other": "2"}}, {}, {}).render("{{a.b}}", named=())


# Texts of refusals whose requests no page sends, or that only programs can cause.
FOR_PROGRAMS = {
    "The form must have the field 'enabled' with 'true' or 'false'.",
    "The metrics need their bearer token: send 'Authorization: Bearer <token>'.",
    "Send the body as JSON, with 'Content-Type: {}'.",
    "The query is not valid: a text must not contain the character NUL.",
    "The query is not valid: 'after' must be the 'next' of the previous page.",
    "The query is not valid: {}.",
    "The body is not valid: {}.",
    "The body must be a JSON object in UTF-8.",
    "The body must have one of {}.",
    "The device key is not valid.",
    "{}.",
}


def test_each_refusal_of_the_server_is_in_the_catalogue() -> None:
    known = {PLACEHOLDER.sub("{}", str(text)) for key, text in ENGLISH.items() if key.startswith("refusal.")}
    api = Path(brewos_relay.__file__).parent / "api"
    found = set[str]()
    for path in api.glob("*.py"):
        found |= set(refusals_of(ast.parse(path.read_text("utf-8"))))
    assert len(found) > 50
    assert found - known - FOR_PROGRAMS == set()


def test_reasons_of_refusals_are_in_the_catalogue() -> None:
    patterns = [
        re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(str(text))))
        for key, text in ENGLISH.items()
        if key.startswith("refusal.") and key != "refusal.other"
    ]
    errors: list[Exception] = [QuotaReached(3), TooManyUnproven(3), UserExists("ada@example.org")]
    for check, value in ((normal_email, "ada"), (check_password, "short")):
        with pytest.raises(ValueError, match="must") as raised:
            check(value)
        errors.append(raised.value)
    texts = [as_sentence(error) for error in errors[:4]]
    texts.append(str(errors[4]))
    limits = vars(RequestLimits()).values()
    texts += [limit._what for limit in limits if isinstance(limit, (RequestLimit, FairRate))]
    source = Path(brewos_relay.__file__).parent / "registry" / "sign_in.py"
    texts += refusals_of(ast.parse(source.read_text("utf-8")), names={"SignInRefused"})
    assert len(texts) > 15
    assert [text for text in texts if not any(pattern.fullmatch(text) for pattern in patterns)] == []


def refusals_of(module: ast.Module, *, names: Collection[str] = ("Refused", "error_answer")) -> list[str]:
    """Find the texts of the refusals and error answers that a module makes, with {} for each value."""
    constants: dict[str, ast.expr] = {}
    for node in module.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            constants[node.target.id] = node.value
    found: list[str] = []

    def collect(node: ast.expr) -> None:
        match node:
            case ast.Constant(value=str(text)):
                found.append(text)
            case ast.JoinedStr(values=parts):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
                )
            case ast.IfExp(body=one, orelse=other):
                collect(one)
                collect(other)
            case ast.Name(id=name) if name in constants:
                collect(constants[name])
            case ast.Subscript(value=ast.Name(id=name)) if name in constants:
                collect(constants[name])
            case ast.Dict(values=values):
                for value in values:
                    collect(value)

    for called in ast.walk(module):
        match called:
            case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in names:
                collect(first)
    return found
