"""The payload of signatures: every key, missing, unknown, duplicate and of a wrong type."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci.reference import parse_named
from imgproxy.specs.signing.signature import SignatureError
from imgproxy.specs.signing.simple_signing import ATOMIC, COSIGN, Claim, parse

DIGEST = "sha256:" + "a" * 64


def document(kind: str = ATOMIC, **critical: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON is any)
    return {
        "critical": {
            "type": kind,
            "image": {"docker-manifest-digest": DIGEST},
            "identity": {"docker-reference": "busybox"},
            **critical,
        },
        "optional": {},
    }


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("kind", [ATOMIC, COSIGN])
@pytest.mark.parametrize(
    "optional",
    [
        {},
        {"creator": "me", "timestamp": 1458239713},
        {"timestamp": 1e9},
        {"anything": [None, {"x": 1.5}]},
    ],
)
def test_a_payload_names_a_digest_and_a_reference(kind: str, optional: object) -> None:
    claim = Claim(digests.parse(DIGEST), parse_named("docker.io/library/busybox"))
    assert parse(encode({**document(kind), "optional": optional}), kind) == claim


def test_cosign_writes_null_for_nothing() -> None:
    raw = {**document(COSIGN), "optional": None}
    assert parse(encode(raw), COSIGN).reference == parse_named("busybox")
    with pytest.raises(SignatureError, match=r"its payload: optional: missing"):
        parse(encode({**document(), "optional": None}), ATOMIC)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "the document: expected an object"),
        ({}, "critical: missing"),
        ({"critical": {}}, "optional: missing"),
        ({"optional": {}}, "critical: missing"),
        ({**document(), "more": 1}, "more: unknown key"),
        ({**document(), "Critical": {}}, "Critical: unknown key"),
        ({**document(), "critical": None}, "critical: missing"),
        (document(more=1), "critical.more: unknown key"),
        (document(kind=COSIGN), f'critical.type: expected "{ATOMIC}", got "{COSIGN}"'),
        (document(type=5), "critical.type: expected a string"),
        (document(image={}), "critical.image.docker-manifest-digest: missing"),
        (document(image=[]), "critical.image: expected an object"),
        (
            document(image={"docker-manifest-digest": DIGEST, "more": 1}),
            "critical.image.more: unknown key",
        ),
        (document(image={"docker-manifest-digest": "sha256:x"}), '"sha256:x"'),
        (document(image={"docker-manifest-digest": None}), "critical.image.docker-manifest-digest"),
        (document(identity={}), "critical.identity.docker-reference: missing"),
        (
            document(identity={"docker-reference": "x", "more": 1}),
            "critical.identity.more: unknown key",
        ),
        (document(identity={"docker-reference": "UPPER"}), 'the image name "UPPER"'),
        (
            document(identity={"docker-reference": 5}),
            "critical.identity.docker-reference: expected",
        ),
        ({**document(), "optional": []}, "optional: expected an object"),
        ({**document(), "optional": {"creator": 5}}, "optional.creator: expected a string"),
        ({**document(), "optional": {"timestamp": 1.5}}, "optional.timestamp: expected an integer"),
        ({**document(), "optional": {"timestamp": "1"}}, "optional.timestamp: expected an integer"),
        *(
            (
                {
                    **document(),
                    "critical": {k: v for k, v in document()["critical"].items() if k != key},
                },
                f"critical.{key}: missing",
            )
            for key in ("type", "image", "identity")
        ),
    ],
)
def test_a_payload_is_exactly_that(value: object, reason: str) -> None:
    with pytest.raises(SignatureError) as raised:
        parse(encode(value), ATOMIC)
    assert str(raised.value).startswith(f"its payload: {reason}")


@pytest.mark.parametrize("key", ["critical", "optional", "image", "docker-reference"])
def test_no_key_stands_twice(key: str) -> None:
    raw = encode(document()).replace(f'"{key}":'.encode(), f'"{key}":0,"{key}":'.encode(), 1)
    with pytest.raises(SignatureError, match=f'its payload: the key "{key}" occurs twice'):
        parse(raw, ATOMIC)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", encode(document()) + b"x"])
def test_a_payload_is_clean_json(raw: bytes) -> None:
    with pytest.raises(SignatureError, match="its payload: not "):
        parse(raw, ATOMIC)
