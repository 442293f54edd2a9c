"""The requirements of policy.json: keys that are missing, unknown, empty, or of a wrong type."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from imgproxy.config import policy
from imgproxy.config.signature_requirements import (
    Fulcio,
    Material,
    Pki,
    Requirement,
    SignedBy,
    SigstoreSigned,
    UnsupportedRequirement,
)
from imgproxy.config.signed_identity import DEFAULT, SignedIdentity
from imgproxy.errors import ConfigurationError

Json = dict[str, Any]

KEY = b"a key"
DATA = base64.b64encode(KEY).decode()
GPG: Json = {"type": "signedBy", "keyType": "GPGKeys"}
SIGSTORE: Json = {"type": "sigstoreSigned"}
FULCIO: Json = {"caPath": "/ca", "oidcIssuer": "https://issuer", "subjectEmail": "a@b"}
WITH_FULCIO: Json = {**SIGSTORE, "fulcio": FULCIO, "rekorPublicKeyPath": "/rekor"}
PKI: Json = {"caRootsPath": "/roots", "subjectEmail": "a@b"}
REPOSITORY: Json = {"type": "matchRepository"}


def parse(requirement: Json) -> Requirement:
    document = json.dumps({"default": [requirement]}).encode()
    (found,) = policy.parse(document, "p").default.requirements
    assert not isinstance(found, str)
    return found


def complaint(requirement: Json) -> str:
    with pytest.raises(ConfigurationError) as raised:
        parse(requirement)
    return raised.value.message.removeprefix("the policy p: default[0]")


@pytest.mark.parametrize(
    ("requirement", "keys"),
    [
        ({**GPG, "keyPath": "/k"}, Material("default[0].keyPath", ("/k",))),
        ({**GPG, "keyPaths": ["/k", "l"]}, Material("default[0].keyPaths", ("/k", "l"))),
        ({**GPG, "keyData": DATA}, Material("default[0].keyData", (), (KEY,))),
    ],
)
def test_openpgp_keys_are_in_files_or_in_the_policy(requirement: Json, keys: Material) -> None:
    assert parse(requirement) == SignedBy("signedBy", keys, DEFAULT)
    named = {**requirement, "signedIdentity": REPOSITORY}
    assert parse(named) == SignedBy("signedBy", keys, SignedIdentity("matchRepository"))


@pytest.mark.parametrize("kind", ["signedByGPGKeys", "X509Certificates", "signedByX509CAs"])
def test_other_types_of_keys_are_known_and_reject(kind: str) -> None:
    requirement = parse({**GPG, "keyType": kind, "keyPath": "/k"})
    assert isinstance(requirement, UnsupportedRequirement)
    assert kind in requirement.reason


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ({"keyPath": "/k"}, Material("default[0].keyPath", ("/k",))),
        ({"keyPaths": ["/k", "/l"]}, Material("default[0].keyPaths", ("/k", "/l"))),
        ({"keyData": DATA}, Material("default[0].keyData", (), (KEY,))),
        ({"keyDatas": [DATA, DATA]}, Material("default[0].keyDatas", (), (KEY, KEY))),
    ],
)
def test_sigstore_keys_are_in_files_or_in_the_policy(source: Json, keys: Material) -> None:
    kind = "sigstoreSigned"
    assert parse({**SIGSTORE, **source}) == SigstoreSigned(kind, keys, None, DEFAULT)
    for key, value in source.items():
        logged = {f"rekorPublicK{key[1:]}": value}
        field_path = keys.field_path.replace("keyP", "rekorPublicKeyP").replace(
            "keyD", "rekorPublicKeyD"
        )
        log = keys._replace(field_path=field_path)
        assert parse({**SIGSTORE, **source, **logged}) == SigstoreSigned(kind, keys, log, DEFAULT)


def test_certificates_are_fulcios_or_of_a_pki() -> None:
    log = Material("default[0].rekorPublicKeyPath", ("/rekor",))
    authorities = Material("default[0].fulcio.caPath", ("/ca",))
    assert parse({**WITH_FULCIO, "signedIdentity": REPOSITORY}) == SigstoreSigned(
        "sigstoreSigned",
        Fulcio(authorities, "https://issuer", "a@b"),
        log,
        SignedIdentity("matchRepository"),
    )
    roots = Material("default[0].pki.caRootsPath", ("/roots",))
    for more, pki in (
        ({}, Pki(roots, None, "a@b", "")),
        ({"subjectHostname": "h"}, Pki(roots, None, "a@b", "h")),
        (
            {"caIntermediatesData": DATA},
            Pki(roots, Material("default[0].pki.caIntermediatesData", (), (KEY,)), "a@b", ""),
        ),
        (
            {"caIntermediatesPath": "/i"},
            Pki(roots, Material("default[0].pki.caIntermediatesPath", ("/i",)), "a@b", ""),
        ),
    ):
        requirement = {**SIGSTORE, "pki": {**PKI, **more}}
        assert parse(requirement) == SigstoreSigned("sigstoreSigned", pki, None, DEFAULT)
    data = {"caData": DATA, "oidcIssuer": "i", "subjectEmail": "e"}
    found = parse({**WITH_FULCIO, "fulcio": data})
    assert isinstance(found, SigstoreSigned)
    assert found.signers == Fulcio(Material("default[0].fulcio.caData", (), (KEY,)), "i", "e")
    data = {"caRootsData": DATA, "subjectHostname": "h"}
    found = parse({**SIGSTORE, "pki": data})
    assert isinstance(found, SigstoreSigned)
    assert found.signers == Pki(Material("default[0].pki.caRootsData", (), (KEY,)), None, "", "h")


ONE_OF_GPG = ": expected one of keyPath, keyPaths, keyData, got "
ONE_OF_SIGSTORE = ": expected one of keyPath, keyPaths, keyData, keyDatas, fulcio, pki, got "
REKOR = "rekorPublicKeyPath, rekorPublicKeyPaths, rekorPublicKeyData, rekorPublicKeyDatas"


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        (GPG, f"{ONE_OF_GPG}none"),
        ({**GPG, "keyPath": "/k", "keyData": DATA}, f"{ONE_OF_GPG}keyPath and keyData"),
        ({"type": "signedBy", "keyPath": "/k"}, ".keyType: missing (expected a string)"),
        ({**GPG, "keyType": "gpgkeys"}, '.keyType: unknown type of key "gpgkeys"'),
        ({**GPG, "keyPath": ""}, ".keyPath: must not be empty"),
        ({**GPG, "keyPath": 5}, ".keyPath: expected a string, got 5"),
        ({**GPG, "keyPath": None}, ".keyPath: expected a value, got null"),
        ({**GPG, "keyPaths": []}, ".keyPaths: must not be empty"),
        ({**GPG, "keyPaths": [""]}, ".keyPaths: must not be empty"),
        ({**GPG, "keyPaths": "/k"}, ".keyPaths: expected an array"),
        ({**GPG, "keyData": "*"}, ".keyData: not base64"),
        ({**GPG, "keyDatas": [DATA]}, ".keyDatas: unknown key"),
        ({**GPG, "keyPath": "/k", "KeyType": "x"}, ".KeyType: unknown key"),
        ({**GPG, "keyPath": "/k", "signedIdentity": {}}, ".signedIdentity.type: missing"),
        ({**GPG, "keyPath": "/k", "signedIdentity": "x"}, ".signedIdentity: expected an object"),
        ({**GPG, "keyPath": "/k", "signedIdentity": None}, ".signedIdentity: expected a value"),
        (SIGSTORE, f"{ONE_OF_SIGSTORE}none"),
        ({**SIGSTORE, "keyPath": "/k", "pki": PKI}, f"{ONE_OF_SIGSTORE}keyPath and pki"),
        ({**SIGSTORE, "keyDatas": ["*"]}, ".keyDatas: not base64"),
        ({**SIGSTORE, "keyDatas": [DATA, 5]}, ".keyDatas[1]: expected a string"),
        ({**SIGSTORE, "keyPath": "/k", "keyType": "GPGKeys"}, ".keyType: unknown key"),
        (
            {**SIGSTORE, "keyPath": "/k", "rekorPublicKeyPath": "/r", "rekorPublicKeyData": DATA},
            f": expected one of {REKOR}, got rekorPublicKeyPath and rekorPublicKeyData",
        ),
        ({**SIGSTORE, "fulcio": FULCIO}, f": fulcio needs one of {REKOR}"),
        ({**WITH_FULCIO, "fulcio": []}, ".fulcio: expected an object, got an array"),
        ({**WITH_FULCIO, "fulcio": {**FULCIO, "caData": DATA}}, ".fulcio: expected one of caPath"),
        ({**WITH_FULCIO, "fulcio": {**FULCIO, "x": 1}}, ".fulcio.x: unknown key"),
        (
            {**WITH_FULCIO, "fulcio": {**FULCIO, "oidcIssuer": ""}},
            ".fulcio.oidcIssuer: must not be empty",
        ),
        *(
            (
                {**WITH_FULCIO, "fulcio": {k: v for k, v in FULCIO.items() if k != key}},
                f".fulcio{words}",
            )
            for key, words in (
                ("caPath", ": expected one of caPath, caData, got none"),
                ("oidcIssuer", ".oidcIssuer: missing (expected a string)"),
                ("subjectEmail", ".subjectEmail: missing (expected a string)"),
            )
        ),
        (
            {**SIGSTORE, "pki": PKI, "rekorPublicKeyPath": "/r"},
            f": pki must not be combined with {REKOR}",
        ),
        ({**SIGSTORE, "pki": {"caRootsPath": "/r"}}, ".pki: expected one of subjectEmail, subject"),
        ({**SIGSTORE, "pki": {"subjectEmail": "e"}}, ".pki: expected one of caRootsPath, caRoots"),
        (
            {**SIGSTORE, "pki": {**PKI, "subjectHostname": ""}},
            ".pki.subjectHostname: must not be e",
        ),
        (
            {**SIGSTORE, "pki": {**PKI, "caIntermediatesPath": "/i", "caIntermediatesData": DATA}},
            ".pki: expected one of caIntermediatesPath, caIntermediatesData, got",
        ),
        ({**SIGSTORE, "pki": {**PKI, "oidcIssuer": "x"}}, ".pki.oidcIssuer: unknown key"),
        ({"type": "signedBaseLayer"}, ".baseLayerIdentity: missing (expected an object)"),
        (
            {"type": "signedBaseLayer", "baseLayerIdentity": {"type": "x"}},
            '.baseLayerIdentity.type: unknown identity "x"',
        ),
        ({"type": "signedBaseLayer", "keyPath": "/k"}, ".keyPath: unknown key"),
    ],
)
def test_a_requirement_with_a_mistake_is_none_at_all(requirement: Json, words: str) -> None:
    assert complaint(requirement).startswith(words)


@pytest.mark.parametrize("requirement", [GPG, WITH_FULCIO])
def test_no_key_stands_twice(requirement: Json) -> None:
    text = json.dumps({"default": [requirement]})
    for key in requirement:
        twice = text.replace(f'"{key}":', f'"{key}": 0, "{key}":', 1)
        with pytest.raises(ConfigurationError, match=f'the key "{key}" occurs twice'):
            policy.parse(twice.encode(), "p")
