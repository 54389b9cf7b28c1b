"""The pages of the console in each language: the catalogue of texts, and the pages that are rendered with it.

`console/texts/` has one JSON file for each language. A page names its texts by marks: `{{key}}` for text,
`{{{key}}}` for text with elements. `{{language}}` is the language itself, and `{{languages}}` are the options
to choose it. `{{>name}}` is a part of several pages, from `console/parts/`. The scripts of the page get their
texts in a data block.
"""

import html
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple, TypeAlias

from quart import Request

DEFAULT: Final = "en"
"""The language for browsers that accept none of the catalogue. The server's own messages are in it too."""
COOKIE: Final = "brewos_relay_language"
"""The cookie with the language that the user has chosen in this browser."""

Text: TypeAlias = str | Mapping[str, str]
"""A text, or its plural forms by the names of CLDR."""

_MARK: Final = re.compile(r"\{\{(?:\{([\w.-]+)\}|([\w.-]+))\}\}")
_PART: Final = re.compile(r"\{\{>([\w-]+)\}\}\n")
_LITERAL: Final = re.compile(r'"([\w.-]+)"')
_MODULE: Final = re.compile(r'(?:(?:from|import) "\./|<script type="module" src="/console/)([\w.]+)"')
_LATER: Final = re.compile(r'\bimport\("\./([\w.]+)"\)')
_SCRIPT: Final = '<script type="module"'
_BLOCK: Final = '<script type="application/json" id="texts">{}</script>\n'
_OPTION: Final = '<option value="{0}" lang="{0}">{1}</option>'
_PLACEHOLDER: Final = re.compile(r"\{\w+\}")
_NAME: Final = "language.name"
_REFUSAL: Final = "refusal."
_OTHER_REFUSAL: Final = "refusal.other"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The texts of one language, by key.

    `english` are those of the default language. `languages` are the names of all languages.
    """

    language: str
    texts: Mapping[str, Text]
    english: Mapping[str, Text]
    languages: Mapping[str, str]

    def render(self, page: str, *, named: Collection[str]) -> str:
        """Fill in the texts of a page, and add those of its scripts. Raises KeyError for an unknown key.

        `named` are the literals of its scripts: the keys of their texts are among them.
        """
        rendered = _MARK.sub(self._fill, page)
        content = json.dumps(self._texts_of(named), ensure_ascii=False)
        block = _BLOCK.format(content.replace("<", "\\u003c"))
        return rendered.replace(_SCRIPT, block + _SCRIPT, 1)

    def _fill(self, mark: re.Match[str]) -> str:
        with_elements, plain = mark.groups()
        if plain == "language":
            return self.language
        if plain == "languages":
            return "".join(_OPTION.format(code, html.escape(name)) for code, name in self.languages.items())
        text = self.texts[with_elements or plain]
        if not isinstance(text, str):
            raise KeyError(f"{mark[0]} has plural forms, which only scripts can choose from")
        return text if with_elements else html.escape(text)

    def _texts_of(self, named: Collection[str]) -> dict[str, object]:
        """Collect the texts that scripts name, and the refusals of the server to translate."""
        texts = {key: text for key, text in self.texts.items() if key in named}
        translates = self.language != DEFAULT and _OTHER_REFUSAL in named
        return {"texts": texts, "refusals": self._refusals() if translates else []}

    def _refusals(self) -> list[tuple[Text, Text]]:
        found = [
            (text, self.texts[key])
            for key, text in self.english.items()
            if key.startswith(_REFUSAL) and key != _OTHER_REFUSAL
        ]
        # The ones with the most words first: one with fewer may match the same sentence with a placeholder.
        return sorted(found, key=lambda pair: -len(_PLACEHOLDER.sub("", str(pair[0]))))


def read_catalogues(folder: Traversable) -> dict[str, Catalogue]:
    """Read the catalogues of the folder, by language. The default language is the first."""
    texts = {
        entry.name.removesuffix(".json"): json.loads(entry.read_text("utf-8"))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".json")
    }
    languages = sorted(texts, key=lambda language: (language != DEFAULT, language))
    names = {language: texts[language][_NAME] for language in languages}
    return {language: Catalogue(language, texts[language], texts[DEFAULT], names) for language in languages}


def read_pages(folder: Traversable) -> dict[str, str]:
    """Read the pages of the folder with their parts, by name. Raises KeyError for an unknown part."""
    parts = _read_html(folder / "parts")

    def fill(mark: re.Match[str]) -> str:
        return _PART.sub(fill, parts[f"{mark[1]}.html"])

    return {name: _PART.sub(fill, page) for name, page in _read_html(folder).items()}


def _read_html(folder: Traversable) -> dict[str, str]:
    return {
        entry.name: entry.read_text("utf-8") for entry in folder.iterdir() if entry.name.endswith(".html")
    }


class _Module(NamedTuple):
    loads: Sequence[str]
    later: Sequence[str]
    literals: frozenset[str]


class Scripts:
    """The modules of the scripts, each read once: what it imports, and its literals."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._modules = {
            name: _Module(
                _MODULE.findall(source), _LATER.findall(source), frozenset(_LITERAL.findall(source))
            )
            for name, source in sources.items()
        }

    def of_page(self, page: str, *, later: bool = False) -> list[str]:
        """List the modules that a page loads, directly or through others.

        With `later`, those are included that its scripts import when they run. Libraries are not.
        """
        found: dict[str, None] = {}
        left = _MODULE.findall(page)
        while left:
            name = left.pop(0)
            if name not in found:
                found[name] = None
                module = self._modules[name]
                left += [*module.loads, *(module.later if later else ())]
        return list(found)

    def literals(self, page: str) -> frozenset[str]:
        """Return the literals of all modules of a page."""
        modules = (self._modules[name] for name in self.of_page(page, later=True))
        return frozenset[str]().union(*(module.literals for module in modules))


def language_for(request: Request, languages: Sequence[str]) -> str:
    """Return the chosen language of a request, or the best one that its browser accepts."""
    chosen = request.cookies.get(COOKIE)
    if chosen is None or chosen not in languages:
        chosen = request.accept_languages.best_match(languages)
    return chosen or DEFAULT
