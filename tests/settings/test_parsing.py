from ipaddress import ip_network
from pathlib import Path

import pytest

from brewos_relay.settings import parsing


@pytest.mark.parametrize("text", ["true", "Yes", "ON", "1"])
def test_yes(text: str) -> None:
    assert parsing.parse_flag(text) is True


@pytest.mark.parametrize("text", ["false", "No", "OFF", "0"])
def test_no(text: str) -> None:
    assert parsing.parse_flag(text) is False


@pytest.mark.parametrize("text", ["2", "maybe", " true"])
def test_invalid_flags_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^true or false$"):
        parsing.parse_flag(text)


@pytest.mark.parametrize("text", ["0", "1", "101", "-4", "4.5", "", "many", "٤"])
def test_invalid_pool_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a number from 2 to 100$"):
        parsing.parse_pool(text)


def test_pool_sizes() -> None:
    assert [parsing.parse_pool(text) for text in ("2", "100")] == [2, 100]


def test_sign_up_policies() -> None:
    assert parsing.parse_sign_up("OPEN") == "open"
    with pytest.raises(ValueError, match="one of open, invited"):
        parsing.parse_sign_up("closed")


def test_lists() -> None:
    assert parsing.parse_texts(" a, b c,,") == ("a", "b c")
    assert parsing.parse_paths("a.pem, /etc/b.pem") == (Path("a.pem"), Path("/etc/b.pem"))
    assert parsing.parse_texts(",") == ()


def test_networks() -> None:
    assert parsing.parse_networks("10.0.0.0/8,192.168.1.4, fd00::/8") == (
        ip_network("10.0.0.0/8"),
        ip_network("192.168.1.4/32"),
        ip_network("fd00::/8"),
    )


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "localhost", "10.0.0.0/8 fd00::/8"])
def test_invalid_networks_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"networks like 10\.0\.0\.0/8"):
        parsing.parse_networks(text)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Relay.Example.COM", "https://relay.example.com"),
        ("https://relay.example.com/", "https://relay.example.com"),
        ("https://relay.example.com:443", "https://relay.example.com"),
        ("http://relay.example.com:443", "http://relay.example.com:443"),
        ("http://192.168.1.4:3001", "http://192.168.1.4:3001"),
        ("http://[fd00::1]:80/", "http://[fd00::1]"),
        ("https://relay.example.com.", "https://relay.example.com"),
        ("https://relay.example.com.:8443/", "https://relay.example.com:8443"),
    ],
)
def test_public_urls_and_origins_are_written_as_browsers_do(text: str, origin: str) -> None:
    assert parsing.parse_public_url(text) == origin
    assert parsing.parse_origins(f"{text}, https://b.example") == (origin, "https://b.example")


@pytest.mark.parametrize(
    "text",
    [
        "relay.example.com",
        "//relay.example.com",
        "ftp://relay.example.com",
        "https://",
        "https:///x",
        "https://.",
        "https://relay.example.com/app",
        "https://relay.example.com?",
        "https://relay.example.com/#",
        "https://ada@relay.example.com",
        "https://relay.example.com:99999",
        "https://relay.example.com:x",
        "https://[fd00::1",
        "https://relay example.com",
        "https://rel\u00e4y.example",
        "https://relay.example.com\n",
    ],
)
def test_invalid_public_urls_and_origins_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^an http or https URL without a path"):
        parsing.parse_public_url(text)
    with pytest.raises(ValueError, match=r"^a comma-separated list of origins"):
        parsing.parse_origins(f"https://b.example,{text}/x" if text.endswith("\n") else text)


@pytest.mark.parametrize(
    "text",
    ["https://id.example.com", "https://id.example.com/realms/home/", "http://127.0.0.1:8080", "http://[::1]/x",
     "http://localhost:8080"],
)  # fmt: skip
def test_an_issuer_is_returned_unchanged(text: str) -> None:
    assert parsing.parse_issuer(text) == text
    assert parsing.parse_secure_url(f"{text}?a=b") == f"{text}?a=b"


@pytest.mark.parametrize("text", ["mailto:ada@example.com", "https://relay.example/contact"])
def test_contact_is_returned_unchanged(text: str) -> None:
    assert parsing.parse_contact(text) == text


@pytest.mark.parametrize("text", ["ada@example.com", "mailto:ada", "mailto:@x.y", "mailto:a@b", "http://a.b"])
def test_invalid_contacts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^mailto: with an e-mail address"):
        parsing.parse_contact(text)


@pytest.mark.parametrize("text", ["https://api.example/list?a=b", "releases", "/srv/releases"])
def test_source_of_releases_is_returned_unchanged(text: str) -> None:
    assert parsing.parse_releases(text) == text


@pytest.mark.parametrize("text", ["http://api.example/list", "file:///srv/releases", "https:///list"])
def test_invalid_sources_of_releases_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^an https URL like"):
        parsing.parse_releases(text)


@pytest.mark.parametrize(
    "text",
    ["http://id.example.com", "https://ada:x@id.example.com", "id.example.com", "file:///etc", "https://a/#b",
     "http://127.0.0.1.example.com"],
)  # fmt: skip
def test_invalid_issuers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^an https URL"):
        parsing.parse_issuer(text)


def test_an_issuer_with_a_query_is_refused() -> None:
    with pytest.raises(ValueError, match="without a query"):
        parsing.parse_issuer("https://id.example.com?a=b")


@pytest.mark.parametrize("text", ["capacitor://localhost", "Ionic://localhost", "tauri://LOCALHOST"])
def test_origins_of_app_shells_are_allowed(text: str) -> None:
    assert parsing.parse_origins(f"{text},https://a.example") == (text.lower(), "https://a.example")
    with pytest.raises(ValueError, match="an http or https URL"):
        parsing.parse_public_url(text)


@pytest.mark.parametrize(
    "text", ["capacitor://example.org", "tauri://localhost/x", "ionic://localhost:80", "app://localhost"]
)
def test_origins_with_other_schemes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a comma-separated list of origins"):
        parsing.parse_origins(text)
