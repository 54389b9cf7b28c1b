import pytest

from brewos_relay.api.app_index import with_entry_script

TAG = b'<script src="/console/app_entry.js"></script>'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"<!doctype html><html><head>", b"<title>app</title></head>"),
        (b'<!DOCTYPE html>\n<html lang="en" data-x="a>b">\n  <HEAD>', b'\n<script src="/a.js"></script>'),
        (b"\xef\xbb\xbf<!-- built <head> --> <!doctype html>\n<!-- x -->\n<html>\n<head prefix='x>y'>", b""),
        (b"<!doctype html>", b"<title>app</title><body><header>Head</header>"),
        (b"<html>", b"<body>"),
        (b"", b"<header></header>"),
        (b"", b"text <head>"),
        (b"", b"<!-- never closed <head>"),
        (b"", b""),
    ],
)
def test_script_is_the_first_element_of_the_head(before: bytes, after: bytes) -> None:
    assert with_entry_script(before + after) == before + TAG + after


@pytest.mark.parametrize("page", [b"<!--" * 20_000, b" " * 60_000, b"<!doctype html>" + b"<!---->" * 9_000])
def test_odd_page_takes_no_long_time(page: bytes) -> None:
    assert TAG in with_entry_script(page)
