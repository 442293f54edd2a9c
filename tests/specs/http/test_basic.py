from __future__ import annotations

import pytest

from imgproxy.specs.http.basic import authorization


@pytest.mark.parametrize(
    ("username", "password", "value"),
    [
        ("Aladdin", "open sesame", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),  # RFC 7617 section 2
        ("test", "123£", "Basic dGVzdDoxMjPCow=="),  # section 2.1
        ("", "", "Basic Og=="),
        ("u", "p:q", "Basic dTpwOnE="),
        ("u", "p" * 60, "Basic dTpw" + "cHBw" * 19 + "cHA="),
    ],
)
def test_the_value_is_one_line_of_base64(username: str, password: str, value: str) -> None:
    assert authorization(username, password) == value
