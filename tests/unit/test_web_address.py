"""What passes for an address that alerts and pings may be sent to."""

from __future__ import annotations

import pytest

from app.web_address import LONGEST, origin_of, web_address


@pytest.mark.parametrize(
    "value",
    [
        "http://hooks.example",
        "https://hc-ping.com/0193f0a0-c0de-7abc-8def-0123456789ab",
        "https://user:password@hooks.example:8443/a/b?c=d&e=%20f",
        "HTTP://192.0.2.7:8000/ping/key/slug?create=1",
        "http://[2001:db8::1]:80/x",
        "http://my_receiver/",
        "http://xn--fsqu00a.example./",
    ],
)
def test_addresses_that_can_be_asked(value: str) -> None:
    assert web_address(value) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        "hooks.example/token",
        "//hooks.example/token",
        "ftp://hooks.example/token",
        "file:///etc/passwd",
        "gopher://hooks.example/token",
        "javascript:alert(1)",
        "http://",
        "http:///token",
        "http://:80/token",
        "http://user@/token",
        "http://host:port/token",
        "http://host:0/token",
        "http://host:65536/token",
        "http://[::1/token",
        "http://[nonsense]/token",
        "http://.example/token",
        "http://a..b/token",
        "http://-a.example/token",
        "http://host/a token",
        "http://host/\ttoken",
        "http://host/token\r\nX-Injected: 1",
        "http://host\\@other/token",
        "http://主机/token",
        "http://host/token#part",
        "http://host/token" + "x" * LONGEST,
    ],
)
def test_anything_else_is_refused_without_being_repeated(value: str) -> None:
    with pytest.raises(ValueError, match=r"http:// or https://") as caught:
        web_address(value)
    assert "token" not in str(caught.value)


def test_the_origin_shows_no_token() -> None:
    assert origin_of("https://user:sesame@hooks.example:8443/sesame?t=sesame") == "https://hooks.example:8443"
