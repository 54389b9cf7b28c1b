"""The generators of the documentation: they cover everything, and their JSON documents are valid."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import brewos_relay
import brewos_relay.client
import from_cli
import from_dialect
import from_http
import from_messages
import from_metrics
import from_python
import from_settings
import tables
from brewos_relay.errors import CloseCode
from brewos_relay.messages import CommandHead, Head
from brewos_relay.settings import Settings
from brewos_relay.settings.server_limits import ServerLimits
from message_catalogue import RECEIVED, SENT, ReceivedMessage, SentMessage
from sphinx_site import name_files, toctrees
from tables import arguments_of

DOCS = Path(__file__).parents[1] / "docs"
EVERYTHING = [pytest.param(each, id=from_messages._name(each)) for each in from_messages.EVERYTHING]


def arguments_on(page: str, generator: str) -> list[str]:
    return arguments_of((DOCS / page).read_text("utf-8"), generator)


def part(start: str, text: str = "") -> str:
    return f"Above\n\n{start}\n{text}\n<!-- end of generated part -->\n\nBelow\n"


# Pages


def test_unknown_generator_is_named() -> None:
    with pytest.raises(ValueError, match=r"<!-- generated: weather today -->: unknown generator"):
        tables.generate(part("<!-- generated: weather today -->"))


def test_generated_part_without_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a `<!-- end of generated part -->` below it"):
        tables.generate("<!-- generated: options brewos-relay secret -->\n\nBelow\n")


def test_only_the_generated_part_changes() -> None:
    start = "<!-- generated: options brewos-relay secret -->"
    page = tables.generate(part(start, "<<<<<<< ours\nold\n=======\nolder\n>>>>>>> theirs\n"))
    assert page.startswith(f"Above\n\n{start}\n\n```text\nbrewos-relay secret")
    assert page.endswith("```\n\n<!-- end of generated part -->\n\nBelow\n")
    assert "old" not in page
    assert tables.generate(page) == page
    assert tables.without_generated(page) == "Above\n\n\n\nBelow\n"


def test_links_out_of_the_site_become_file_names(tmp_path: Path) -> None:
    site = tmp_path / "docs"
    text = (
        "[a page](../reference/cli.md#x), [an example](../../examples/core.py#main), [far](https://a.example),"
        " [`.env.example`](../../.env.example)"
    )
    assert name_files(text, site / "how-to", site) == (
        "[a page](../reference/cli.md#x), an example (`examples/core.py` in the project), [far](https://a.example),"
        " `.env.example`"
    )


def test_each_section_of_the_first_page_becomes_a_toctree() -> None:
    page = (
        "# T\n\n[no](a.md)\n\n"
        "## How to\n\n- [Sign in](how-to/sign-in.md): with [x](y.md)\n- [B](b.md)\n\n"
        "## Not\n\nText\n"
    )
    assert toctrees(page) == (
        "```{toctree}\n:hidden:\n:caption: How to\n\nSign in <how-to/sign-in>\nB <b>\n```\n"
    )


def test_empty_columns_are_removed() -> None:
    text = "Above\n\n| A | B | C |\n|---|---|---|\n| `a` |  | x \\| y |\n| b | | c |\n\nBelow | it\n"
    assert tables.without_empty_columns(text) == (
        "Above\n\n| A | C |\n|---|---|\n| `a` | x \\| y |\n| b | c |\n\nBelow | it\n"
    )


def test_long_lists_of_values_are_split() -> None:
    values = [f"set_mode:{mode}" for mode in ("on", "ready", "brew", "steam", "eco")]
    table = f"| A |\n|---|\n| `{','.join(values)}` |\n"
    assert tables.without_empty_columns(table).endswith(
        f"| {', '.join(f'`{value}`' for value in values)} |\n"
    )


# Commands and settings


def test_every_command_has_its_options_below_its_heading() -> None:
    page = (DOCS / "reference/cli.md").read_text("utf-8")
    sections = dict(re.findall(r"^## (brewos-relay[^\n]*)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert set(sections) == {path for path, _ in from_cli.commands()}
    for path, text in sections.items():
        assert arguments_of(text, "options") == [path], (
            f"write `<!-- generated: options {path} -->` below the heading"
        )


def test_variable_and_default_have_columns_apart_from_the_meaning() -> None:
    (row,) = (row for row in from_cli.options_of("brewos-relay serve").splitlines() if "`--port`" in row)
    assert row.startswith("| `--port` | `PORT` | `3001` | Port to listen on")
    assert "PORT;" not in row
    table = from_cli.options_of("brewos-relay token")
    assert "| `--user` ID |  | required |" in table
    assert "| `--ttl` DURATION |  | `7d` |" in table
    assert "`owner`, `member`, `viewer`." in table


def test_every_group_of_settings_is_on_the_page() -> None:
    groups = from_settings.groups()
    assert arguments_on("reference/settings.md", "settings") == groups
    assert arguments_on("reference/settings.md", "limits") == ["first", "advanced"]
    with pytest.raises(KeyError, match="no limits are 'last'; choose first or advanced"):
        from_settings.table_of_limits("last")
    headings = re.findall(r"^## (.+)$", (DOCS / "reference/settings.md").read_text("utf-8"), re.M)
    assert [heading for heading in headings if heading in groups] == groups
    with pytest.raises(KeyError, match="no group of settings is called 'Weather'"):
        from_settings.table_of("Weather")


@pytest.mark.parametrize("kind", [Settings, ServerLimits])
def test_every_setting_has_a_group_and_a_docstring(kind: type[Any]) -> None:
    for setting in from_settings.settings_of(kind):
        assert setting.meaning.endswith("."), f"write a docstring below {setting.name}"
        assert setting.group, f"write a comment with the group above {setting.name}"


# HTTP


def test_every_route_and_every_type_has_a_section() -> None:
    text = from_http.routes()
    document = from_http.document()
    operations = {f"{method.upper()} {path}" for path, each in document["paths"].items() for method in each}
    headings = set(re.findall(r"^### (.+)$", text, re.M))
    assert headings == operations | set(document["components"]["schemas"])
    anchors = {heading.lower() for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) - {"refusals"} <= anchors
    refused = set(re.findall(r"^Refused with \[(.+?)\]", text, re.M))
    assert {status for each in refused for status in each.split(", ")} == {
        row.split("|")[1].strip() for row in from_http.refusals().splitlines()[2:]
    }


# Messages


@pytest.fixture(scope="module")
def asyncapi() -> dict[str, Any]:
    return from_messages.document()


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def look_up(document: dict[str, Any], reference: str) -> Any:
    found: Any = document
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_document_has_the_structure_of_asyncapi_3(asyncapi: dict[str, Any]) -> None:
    assert asyncapi["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(asyncapi["info"])
    parts = [
        "asyncapi",
        "id",
        "info",
        "servers",
        "defaultContentType",
        "channels",
        "operations",
        "components",
    ]
    assert {name for name in asyncapi if not name.startswith("x-")} <= set(parts)
    for server in asyncapi["servers"].values():
        assert {"host", "protocol"} <= set(server)
    for channel in asyncapi["channels"].values():
        assert channel["address"].startswith("/ws/")
        assert {"address", "messages", "servers", "bindings", "title"} >= set(channel)
        Draft202012Validator.check_schema(channel["bindings"]["ws"]["query"])
    for operation in asyncapi["operations"].values():
        assert operation["action"] in ("send", "receive")
        assert set(operation) <= {"action", "channel", "summary", "messages", "reply"}
        assert operation["channel"]["$ref"].startswith("#/channels/")
    assert json.loads(json.dumps(asyncapi)) == asyncapi


def test_every_reference_resolves(asyncapi: dict[str, Any]) -> None:
    for reference in references(asyncapi):
        assert look_up(asyncapi, reference), reference


def test_operations_use_messages_of_their_channel(asyncapi: dict[str, Any]) -> None:
    used = set()
    for operation in asyncapi["operations"].values():
        for part in (operation, operation.get("reply", operation)):
            for message in part["messages"]:
                assert message["$ref"].startswith(f"{part['channel']['$ref']}/messages/")
                used.add(message["$ref"].rpartition("/")[2])
    assert used == set(asyncapi["components"]["messages"])


def test_document_has_every_close_code(asyncapi: dict[str, Any]) -> None:
    assert [(each["code"], each["name"]) for each in asyncapi["x-close-codes"]] == [
        (int(code), name) for name, code in CloseCode.__members__.items()
    ]


@pytest.mark.parametrize("each", EVERYTHING)
def test_examples_match_their_schema(each: SentMessage | ReceivedMessage) -> None:
    schema = from_messages.schema_of(each)
    Draft202012Validator.check_schema(schema)
    for example in from_messages.examples_of(each):
        Draft202012Validator(schema).validate(example)
    assert not Draft202012Validator(schema).is_valid({})


@pytest.mark.parametrize("each", [pytest.param(each, id=each.made_by) for each in SENT])
def test_every_field_of_a_sent_message_is_explained_and_no_other(each: SentMessage) -> None:
    there: set[str] = set()
    for form in each.forms:
        for name, value in json.loads(form.payload).items():
            there.add(name)
            if isinstance(value, dict):
                there |= {f"{name}.{inner}" for inner in value}
    assert set(each.fields) == there - {"type"}


def test_fields_that_the_relay_reads_are_those_of_the_code() -> None:
    def fields_of(sender: str) -> set[str]:
        return {name for each in RECEIVED if each.sender == sender for name in each.fields}

    assert fields_of("device") == set(Head.__struct_encode_fields__) - {"type"}
    assert fields_of("client") == set(CommandHead.__struct_encode_fields__) - {"type"}


def test_unknown_direction_is_named() -> None:
    with pytest.raises(KeyError, match="unknown direction 'to-printer'"):
        from_messages.table_of("to-printer")
    assert arguments_on("reference/messages.md", "messages") == list(from_messages._TITLES)


def test_unknown_table_of_commands_is_named() -> None:
    with pytest.raises(KeyError, match="no table of 'nothing'; choose from cmd, type"):
        from_dialect.table_of("nothing")
    assert arguments_on("reference/protocol.md", "commands") == ["cmd", "type"]


# Metrics and Python


def test_every_metric_has_a_description() -> None:
    assert arguments_on("reference/metrics.md", "metrics") == [""]
    for metric in from_metrics.metrics():
        assert metric.documentation.endswith("."), metric.name
        assert f"| `{metric.name}" in from_metrics.table()


def test_every_public_name_has_a_section() -> None:
    for package in (brewos_relay, brewos_relay.client):
        names = from_python.public_names(package.__name__)
        assert names == list(package.__all__)
        text = from_python.reference_of(package.__name__)
        assert re.findall(r"^### (.+)$", text, re.M) == names
        for section in re.split(r"^### ", text, flags=re.M)[1:]:
            name, _, rest = section.partition("\n")
            assert re.search(r"^```\n\n\S", rest, re.M), f"{name} has no docstring"


def test_long_values_are_shortened() -> None:
    text = from_python.reference_of("brewos_relay")
    assert "```python\nBREWOS: Final = Dialect(...)\n```" in text


def test_public_members_have_sections_with_their_signatures() -> None:
    text = from_python.reference_of("brewos_relay.client")
    assert "#### App.command\n\n```python\nasync def command(cmd: str, /, *, timeout_s: float" in text
    assert "#### App.kick" in text, "inherited"
    assert "| `missed_messages` | `int` |" in text
    assert "#### App._read" not in text
    assert "#### Relay.run" not in from_python.reference_of("brewos_relay")
