"""URLs of Redis servers."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.cluster.redis_broker import RedisBroker
from brewos_relay.cluster.redis_url import DEFAULT_PREFIX, RedisAddress, parse_redis_url
from support.process import environment


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", RedisAddress("localhost")),
        ("redis://localhost/", RedisAddress("localhost")),
        ("redis://10.0.0.1:7000/3", RedisAddress("10.0.0.1", 7000, db=3)),
        ("redis://[::1]:7000?db=4", RedisAddress("::1", 7000, db=4)),
        ("redis://:p%40ss@host", RedisAddress("host", password="p@ss")),
        ("redis://ada:p%2F%3A@host/1", RedisAddress("host", user="ada", password="p/:", db=1)),
        ("redis://host?prefix=test:", RedisAddress("host", prefix="test:")),
        ("rediss://host:1", RedisAddress("host", 1, tls=True)),
        (
            "rediss://host?ca=/a/ca.pem&cert=c.pem&key=k.pem",
            RedisAddress("host", tls=True, ca="/a/ca.pem", cert="c.pem", key="k.pem"),
        ),
        ("unix:///run/redis.sock", RedisAddress(path="/run/redis.sock")),
        ("unix:///a%20b?db=2&prefix=x", RedisAddress(path="/a b", db=2, prefix="x")),
        ("unix://ada:secret@/s", RedisAddress(path="/s", user="ada", password="secret")),
    ],
)
def test_url_gives_an_address(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address
    assert address.prefix == (DEFAULT_PREFIX if "prefix" not in url else address.prefix)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("", "a URL like"),
        ("localhost:6379", "a URL like"),
        ("http://localhost", "a URL like"),
        ("redis://", "no host"),
        ("redis://:hunter2@", "no host"),
        ("redis://host:0", "port is 0"),
        ("redis://:hunter2@host:99999", "from 1 to 65535"),
        ("redis://host:six", "from 1 to 65535"),
        ("redis://[::1", "a URL like"),
        ("redis://:hunter2#@host", "%23"),
        ("redis://:hunter 2@host", "%23"),
        ("redis://:hunter2/@host", "from 1 to 65535"),
        ("redis://ada@host", "user without a password"),
        ("redis://host/x", "database is a number"),
        ("redis://host/-1", "database is a number"),
        ("redis://host/99999999", "database is a number"),
        ("redis://host/1?db=1", "twice"),
        ("redis://host?db=1&db=2", "at most once"),
        ("redis://host?ca=x", "options are db, prefix"),
        ("rediss://host?verify=none", "options are db, prefix, ca, cert, key"),
        ("rediss://host?key=x", "needs the option cert"),
        ("redis://host?prefix=", "a prefix has"),
        ("redis://host?prefix=a%20b", "a prefix has"),
        ("redis://host?prefix=" + "x" * 101, "a prefix has"),
        ("unix://run/redis.sock", "three slashes"),
        ("unix:///", "three slashes"),
        ("unix:///s?ca=x", "options are db, prefix"),
    ],
)
def test_malformed_url_is_refused_with_a_remedy_and_without_its_password(url: str, remedy: str) -> None:
    with pytest.raises(ValueError, match="a URL like") as refused:
        parse_redis_url(url)
    text = str(refused.value)
    assert remedy in text
    assert "redis://user:password@host:6379/0" in text
    assert "hunter" not in text
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_driver_is_imported_with_the_broker_only() -> None:
    program = """
import sys
import brewos_relay.cluster.redis_url
import brewos_relay.server.assembly
assert "hiredis" not in sys.modules
import brewos_relay.cluster.redis_broker
assert "hiredis" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True, timeout=30)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for start in ("", "redis://", "rediss://h?", "unix:///"):
        try:
            parse_redis_url(start + text)
        except ValueError as refused:
            assert str(refused).startswith("a URL like")  # noqa: PT017 - not each text is refused


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hunter2@host", "redis://host:6379/0"),
        ("rediss://ada:hunter2@host:1/2", "rediss://ada@host:1/2"),
        ("redis://:hunter2@[::1]", "redis://[::1]:6379/0"),
        ("unix://:hunter2@/s?db=1", "unix:///s?db=1"),
    ],
)
def test_text_of_an_address_has_no_password(url: str, shown: str) -> None:
    address = parse_redis_url(url)
    assert str(address) == shown
    assert "hunter2" not in repr(address)


def test_file_with_certificates_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    for options in (f"ca={missing}", f"cert={missing}"):
        with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
            RedisBroker(parse_redis_url(f"rediss://host?{options}"))
