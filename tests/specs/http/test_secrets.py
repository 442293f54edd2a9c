"""What is secret in a request, and what is not."""

from __future__ import annotations

import pytest

from imgproxy.specs.http import basic, secrets
from imgproxy.specs.http.credentials import Credentials

TOKEN = "ghp_0123456789abcdefghij"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", {""}),
        ("Bearer a.b", {"a.b"}),
        (basic.authorization("u", "p:q"), {"dTpwOnE=", "p:q"}),
        (basic.authorization("ä", "ö"), {"w6Q6w7Y=", "ö"}),
        # Some registries take a token in the place of the user.
        (basic.authorization("u", ""), {"dTo=", "", "u"}),
        (basic.authorization(TOKEN, "x"), {basic.authorization(TOKEN, "x")[6:], "x", TOKEN}),
    ],
)
def test_credentials_are_secret_in_an_authorization(value: str, found: set[str]) -> None:
    assert set(secrets.of_authorization(value)) == found


def test_tokens_are_secret() -> None:
    found = set(secrets.of_credentials(Credentials("u", "p", "identity", "x", "registry")))
    assert found == {"identity", "registry", "p", "dTpw"}


# Presigned URLs as they are, with other values.
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", set()),
        ("scope=repository%3Aacme%2Fos%3Apull&service=registry.example.com&account=me", set()),
        ("artifactType=application%2Fvnd.dev.sigstore.bundle.v0.3%2Bjson&n=100", set()),
        (
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20240101&X-Amz-Date=2024"
            "&X-Amz-Expires=1200&X-Amz-SignedHeaders=host&X-Amz-Security-Token=tok%2Ben"
            "&X-Amz-Signature=0a1b",
            {"AKIA/20240101", "tok+en", "0a1b"},
        ),
        (
            "AWSAccessKeyId=AKIA&Signature=a%2Fb%3D&Expires=1700000000",
            {"AKIA", "a/b="},
        ),
        ("se=2024-01-01T00%3A00%3A00Z&sig=abc%3D&sv=2020-04-08&sr=b&sp=r", {"abc="}),
        ("X-Goog-Signature=0a1b&X-Goog-Credential=me%40x", {"0a1b", "me@x"}),
        ("Expires=1&Key-Pair-Id=APKA&Policy=eyJ9&Signature=s1g~", {"APKA", "eyJ9", "s1g~"}),
        ("verify=1700000000-abc", {"1700000000-abc"}),
        ("grant_type=refresh_token&refresh_token=a+b%20c&client_id=imgproxy", {"a b c"}),
        # Whatever its name is.
        (f"x={TOKEN}&y=sha256:{'0' * 64}", {TOKEN}),
        ("token=1", set()),
        ("token=%FF%FF%FF%FF", {"\ufffd" * 4}),
        ("token", set()),
    ],
)
def test_signatures_and_tokens_are_secret_in_a_query(query: str, found: set[str]) -> None:
    assert set(secrets.of_query(query)) == found
