"""Entries of the transparency log: their parsing."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from support.sigstores import Log, Signer, b64, compact, dsse, hashedrekord

from imgproxy.parsing.typed_fields import FieldError
from imgproxy.specs.signing import rekor
from imgproxy.specs.signing.rekor import DSSE, HASHEDREKORD, LoggedSignature
from imgproxy.specs.signing.signature import SignatureError

SIGNER, LOG = Signer(), Log()
CONTENT = b"what was signed"
HASH = hashlib.sha256(CONTENT).hexdigest()
DER = base64.b64decode("".join(SIGNER.pem.decode().splitlines()[1:-1]))


def test_what_is_signed_of_an_entry_is_its_canonical_form() -> None:
    written = LOG.entry({"any": "body"})
    payload = written["Payload"]
    for each in (written, {**written, "Payload": dict(reversed(payload.items()))}):
        entry = rekor.parse_annotation(json.dumps(each, indent=2))
        assert entry.body == b'{"any":"body"}'
        assert entry.time == payload["integratedTime"]
        assert entry.timestamp == base64.b64decode(written["SignedEntryTimestamp"])
        assert (
            entry.signed
            == (
                f'{{"body":"{payload["body"]}","integratedTime":{payload["integratedTime"]},'
                f'"logID":"{payload["logID"]}","logIndex":7}}'
            ).encode()
        )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SignedEntryTimestamp": None}, "SignedEntryTimestamp: expected a value, got null"),
        ({"SignedEntryTimestamp": "*"}, "SignedEntryTimestamp: not base64"),
        ({"More": 1}, "More: unknown key"),
        ({"Payload": []}, "Payload: expected an object"),
        ({"body": 5}, "Payload.body: expected a string"),
        ({"body": "*"}, "Payload.body: not base64"),
        ({"integratedTime": "1"}, "Payload.integratedTime: expected an integer"),
        ({"integratedTime": -1}, "logIndex or integratedTime: out of range"),
        ({"logIndex": 2**53}, "logIndex or integratedTime: out of range"),
        ({"logID": ""}, "logID: expected hex digits"),
        ({"logID": "ABCD"}, "logID: expected hex digits"),
        ({"more": 1}, "Payload.more: unknown key"),
    ],
)
def test_an_entry_is_exactly_that(changes: dict[str, Any], reason: str) -> None:
    written = LOG.entry({"any": "body"})
    place = written if next(iter(changes))[0].isupper() else written["Payload"]
    place.update(changes)
    with pytest.raises(SignatureError) as raised:
        rekor.parse_annotation(json.dumps(written))
    assert str(raised.value).startswith(f"its entry in the log: {reason}")


@pytest.mark.parametrize("text", ["", "{", "\ud800"])
def test_an_entry_is_json(text: str) -> None:
    with pytest.raises(SignatureError, match="its entry in the log: "):
        rekor.parse_annotation(text)


def test_an_entry_is_of_parts_that_logs_give() -> None:
    with pytest.raises(FieldError):
        rekor.make_entry(b"", 1, -1, "ab", b"")


def test_two_kinds_of_entries_are_read() -> None:
    body = compact(hashedrekord(b"signature", SIGNER.pem, CONTENT))
    assert rekor.parse_body(body) == LoggedSignature(HASHEDREKORD, b"signature", HASH, DER)
    body = compact(dsse(b"signature", SIGNER.pem, CONTENT))
    assert rekor.parse_body(body) == LoggedSignature(DSSE, b"signature", HASH, DER)


@pytest.mark.parametrize("make", [hashedrekord, dsse])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"apiVersion": "0.0.2"}, "kind: "),
        ({"kind": "intoto"}, "kind: intoto 0.0.1 is not supported"),
        ({"kind": 5}, "kind: expected a string"),
        ({"apiVersion": None}, "apiVersion: expected a value"),
        ({"more": 1}, "more: unknown key"),
        ({"spec": []}, "spec: expected an object"),
        ({"spec": {}}, "spec.signature"),
        ({"spec": {"more": 1}}, "spec.more: unknown key"),
    ],
)
def test_others_are_not(make: Any, changes: dict[str, Any], reason: str) -> None:  # noqa: ANN401
    with pytest.raises(SignatureError) as raised:
        rekor.parse_body(compact(make(b"s", SIGNER.pem, CONTENT, **changes)))
    assert str(raised.value).startswith(f"its entry in the log: {reason}")


@pytest.mark.parametrize(
    ("make", "path", "value"),
    [
        (hashedrekord, ("data", "hash", "algorithm"), "sha512"),
        (hashedrekord, ("data", "hash", "more"), 1),
        (hashedrekord, ("data", "more"), 1),
        (hashedrekord, ("signature", "content"), "*"),
        (hashedrekord, ("signature", "more"), 1),
        (hashedrekord, ("signature", "publicKey", "content"), b64(b"no PEM")),
        (hashedrekord, ("signature", "publicKey", "content"), b64(SIGNER.pem * 2)),
        (hashedrekord, ("signature", "publicKey", "more"), 1),
        (dsse, ("payloadHash", "algorithm"), "sha512"),
        (dsse, ("signatures",), []),
        (dsse, ("signatures", 0, "signature"), "*"),
        (dsse, ("signatures", 0, "verifier"), b64(b"no PEM")),
        (dsse, ("signatures", 0, "more"), 1),
    ],
)
def test_a_body_is_exactly_that(make: Any, path: tuple[Any, ...], value: object) -> None:  # noqa: ANN401
    document = make(b"s", SIGNER.pem, CONTENT)
    inner = document["spec"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(SignatureError, match="its entry in the log: "):
        rekor.parse_body(compact(document))
