"""Policies that demand signatures: by gpg and skopeo, and as cosign keeps them; same verdicts."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support import skopeo, version3
from support.effort import some
from support.gnupg import Gnupg, gnupg
from support.home import Home, mirror, table
from support.images import OCI_INDEX, OCI_MANIFEST, Json, digest_of
from support.networks import line_to
from support.servers import free_port, nginx, put_blob, put_manifest, skopeo_copy
from support.sigstores import (
    BUNDLE,
    EMAIL,
    ISSUER,
    PAYLOAD,
    Log,
    Signer,
    annotated,
    authority,
    b64,
    between,
    compact,
    enveloped,
    messaged,
    payload,
    rsa_signer,
    statement,
)

from imgproxy.specs.signing.openpgp import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from conftest import Pull, Together
    from support.filled import Registry

    # A payload with its annotations.
    Layer = tuple[bytes, Json]

INSECURE_TLS = "--tls-verify=false"
REPOSITORY = "images/all"

YES, NO = True, False

EXPIRING, BETWEEN = "20250601T000000", "20250301T000000"


class Keys(NamedTuple):
    """GnuPG's keys; `signer` is the one that is trusted."""

    gpg: Gnupg
    signer: str
    other: str
    expired: str
    revoked: str
    renewed: str
    old: str


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    with gnupg() as gpg:
        signer, other = gpg.key("signer"), gpg.key("other")
        expired, renewed = (gpg.key(name, expire=EXPIRING) for name in ("expired", "renewed"))
        old = gpg.key("old", algorithm="rsa2048")
        yield Keys(gpg, signer, other, expired, gpg.key("revoked"), renewed, old)


def simple(digest: str, name: str, **changes: object) -> bytes:
    """Return what skopeo signs."""
    critical = {
        "type": "atomic container signature",
        "image": {"docker-manifest-digest": digest},
        "identity": {"docker-reference": name},
    }
    return compact({"critical": critical, "optional": {}, **changes})


def signed_by(keyring: bytes, **fields: object) -> Json:
    return {"type": "signedBy", "keyType": "GPGKeys", "keyData": b64(keyring), **fields}


def with_policy(home: Home, *requirements: Json, **documents: object) -> list[str]:
    """Write a policy for everything in registries, and where signatures are; give the options."""
    scopes = {"docker": {"": list(requirements)}}
    home.write("policy.json", {"default": [{"type": "reject"}], "transports": scopes})
    sections = documents or {"default-docker": {"lookaside": f"file://{home.path}/lookaside"}}
    home.write("registries.d/all.yaml", {key.replace("_", "-"): v for key, v in sections.items()})
    return ["--policy", f"{home.path}/policy.json", "--registries.d", f"{home.path}/registries.d"]


def lay(home: Home, digest: str, *blobs: bytes, repository: str = REPOSITORY) -> None:
    """Put signatures into the lookaside."""
    for n, blob in enumerate(blobs, 1):
        name = f"{repository}@{digest.replace(':', '=')}/signature-{n}"
        home.write(f"lookaside/{name}", blob)


def answer(pull: Pull, image: str, *options: str) -> tuple[int, str]:
    """Return the status of the manifest, and the message with it."""
    child = pull(image, INSECURE_TLS, *options, policy=None)
    reply = child.client.get("/manifest")
    assert child.finish() == 0
    assert "Traceback" not in child.stderr
    return reply.status, "" if reply.status == 200 else reply.message


def skopeo_says(image: str, home: Home, *options: str) -> str:
    destination = home.path / "copy"
    destination.mkdir(exist_ok=True)
    return skopeo.verdict(image, destination, *options, env=home.environment())


# --- simple signing -----------------------------------------------------------------------------


class Case(NamedTuple):
    """Signatures of an image that is asked for, requirements, and the verdict.

    `stricter` is why ours differs from skopeo's, empty where it does not.
    """

    signatures: list[bytes]
    requirements: list[Json]
    accepted: bool
    by_digest: bool = False
    stricter: str = ""


def cases(keys: Keys, registry: Registry) -> Mapping[str, Case]:
    gpg, digest = keys.gpg, registry.images["latest"]["digest"]
    name = f"{registry.address}/{REPOSITORY}"
    ring = gpg.export(keys.signer)
    other_ring = gpg.export(keys.other)
    trusted = [signed_by(ring)]

    def sign(content: bytes, by: str = keys.signer, **named: Any) -> bytes:  # noqa: ANN401
        return gpg.sign(content, by, **named)

    good, elsewhere = sign(simple(digest, f"{name}:latest")), sign(simple(digest, f"{name}:2"))
    by_other = sign(simple(digest, f"{name}:latest"), keys.other)
    old = sign(simple(digest, f"{name}:latest"), keys.renewed, at=BETWEEN)
    gpg.run("--quick-set-expire", keys.renewed, "20y")
    expired = sign(simple(digest, f"{name}:latest"), keys.expired, at=BETWEEN)
    revoked = sign(simple(digest, f"{name}:latest"), keys.revoked, at=BETWEEN)
    gpg.revoke(keys.revoked)

    old_ring = [signed_by(gpg.export(keys.old))]

    def version_3(content: bytes, **named: Any) -> bytes:  # noqa: ANN401
        return gpg.sign_version_3(content, keys.old, **named)

    good_3, other_3 = (version_3(simple(digest, f"{name}:{tag}")) for tag in ("latest", "2"))

    def identity(kind: str, **fields: str) -> list[Json]:
        return [signed_by(ring, signedIdentity={"type": kind, **fields})]

    host = registry.address
    return {
        "by tag": Case([good], trusted, YES),
        "by digest": Case([elsewhere], trusted, YES, by_digest=True),
        "the second is good": Case([by_other, elsewhere, good], trusted, YES),
        "a keyring with more": Case([good], [signed_by(other_ring + ring)], YES),
        "of two keys, both": Case([good, by_other], [*trusted, signed_by(other_ring)], YES),
        "of two keys, one": Case([good], [*trusted, signed_by(other_ring)], NO),
        "and anything": Case([good], [*trusted, {"type": "insecureAcceptAnything"}], YES),
        "nothing, and anything": Case([], [*trusted, {"type": "insecureAcceptAnything"}], NO),
        "none": Case([], trusted, NO),
        "another key": Case([by_other], trusted, NO),
        "another tag": Case([elsewhere], trusted, NO),
        "another tag of the repository": Case([elsewhere], identity("matchRepository"), YES),
        "exactly": Case([good], identity("matchExact"), YES),
        "another tag, by digest, exactly": Case(
            [elsewhere], identity("matchExact"), NO, by_digest=True
        ),
        "another repository": Case(
            [sign(simple(digest, f"{host}/images/else:latest"))],
            identity("matchRepository"),
            NO,
            by_digest=True,
        ),
        "that reference": Case(
            [sign(simple(digest, "quay.io/a/b:1"))],
            identity("exactReference", dockerReference="quay.io/a/b:1"),
            YES,
        ),
        "not that reference": Case(
            [good], identity("exactReference", dockerReference=f"{name}:2"), NO
        ),
        "that repository": Case(
            [sign(simple(digest, "quay.io/a/b:1"))],
            identity("exactRepository", dockerRepository="quay.io/a/b"),
            YES,
        ),
        "a prefix replaced": Case(
            [sign(simple(digest, "quay.io/x/all:latest"))],
            identity("remapIdentity", prefix=f"{host}/images", signedPrefix="quay.io/x"),
            YES,
        ),
        "a prefix not replaced": Case(
            [sign(simple(digest, "quay.io/x/all:latest"))],
            identity("remapIdentity", prefix=f"{host}/image", signedPrefix="quay.io/x"),
            NO,
        ),
        "another manifest": Case(
            [sign(simple("sha256:" + "0" * 64, f"{name}:latest"))], trusted, NO
        ),
        "more in the payload": Case([sign(simple(digest, f"{name}:latest", more=1))], trusted, NO),
        "version 3": Case([good_3], old_ring, YES),
        "version 3, the second": Case([other_3, good, good_3], old_ring, YES),
        "version 3, by another key": Case([good_3], trusted, NO),
        "version 3, another tag": Case([other_3], old_ring, NO),
        "version 3, changed": Case(
            [version3.message(simple(digest, f"{name}:latest"), parse(other_3).signature[6:])],
            old_ring,
            NO,
        ),
        "version 3, of text": Case(
            [version_3(simple(digest, f"{name}:latest"), kind=1)],
            old_ring,
            NO,
            stricter="what a signature of text covers is not exactly the bytes that are used",
        ),
        "version 3, SHA-1": Case(
            [version_3(simple(digest, f"{name}:latest"), hash_algorithm=2)],
            old_ring,
            NO,
            stricter="others can make a document that it fits as well",
        ),
        "an expired key": Case([expired], [signed_by(gpg.export(keys.expired))], NO),
        "a revoked key": Case([revoked], [signed_by(gpg.export(keys.revoked))], NO),
        "an expired signature": Case(
            [
                gpg.sign(
                    simple(digest, f"{name}:latest"),
                    keys.signer,
                    *("--default-sig-expire", "1d"),
                    at=BETWEEN,
                )
            ],
            trusted,
            NO,
        ),
        "clear text": Case(
            [sign(simple(digest, f"{name}:latest"), mode="--clear-sign")], trusted, NO
        ),
        "clear text as a signature": Case(
            [b"\0simple-signing\n" + sign(simple(digest, f"{name}:latest"), mode="--clear-sign")],
            trusted,
            NO,
            stricter="skopeo reads what GnuPG reads",
        ),
        "not signed": Case(
            [b"\0simple-signing\n" + gpg.run("--store", given=simple(digest, f"{name}:latest"))],
            trusted,
            NO,
        ),
        "encrypted": Case(
            [
                b"\0simple-signing\n"
                + gpg.run(
                    *("--local-user", keys.signer, "--sign", "--encrypt", "--recipient"),
                    gpg.key("reader", algorithm="default", use="default"),
                    given=simple(digest, f"{name}:latest"),
                )
            ],
            trusted,
            NO,
        ),
        "a broken one after a good one": Case([good, b"rubbish"], trusted, NO),
        "base layers": Case(
            [good],
            [
                *trusted,
                {"type": "signedBaseLayer", "baseLayerIdentity": {"type": "matchRepository"}},
            ],
            NO,
        ),
        "a key that was renewed since": Case(
            [old],
            [signed_by(gpg.export(keys.renewed))],
            NO,
            stricter="how it was bound when it signed is not in the keyring any more",
        ),
        "129": Case([good] * 129, trusted, NO, stricter="older versions have no limit"),
    }


def test_simple_signatures_are_judged_as_skopeo_does(
    registry: Registry, keys: Keys, together: Together
) -> None:
    digest = registry.images["latest"]["digest"]

    def check(case: Case, pull: Pull, home: Home) -> None:
        image = registry.name(f"@{digest}" if case.by_digest else ":latest")
        options = with_policy(home, *case.requirements)
        lay(home, digest, *case.signatures)
        status, message = answer(pull, image, *options)
        assert status == (200 if case.accepted else 403), message
        if not case.accepted:
            assert f"the policy {home.path}/policy.json (transports.docker.)" in message
        reference = skopeo_says(image, home, *options)
        if case.stricter:
            assert not case.accepted
        else:
            assert (not reference) is case.accepted, reference

    together(cases(keys, registry), check)


def run_skopeo(keys: Keys, home: Home, *arguments: str) -> None:
    """Have skopeo sign as it does by itself."""
    skopeo.run(*arguments, env=home.environment(GNUPGHOME=str(keys.gpg.home)))


@pytest.mark.slow
def test_what_skopeo_signs_on_its_way_to_a_registry_is_accepted(
    registry: Registry, keys: Keys, home: Home, pull: Pull
) -> None:
    options = with_policy(home, signed_by(keys.gpg.export(keys.signer)))
    image = f"docker://{registry.address}/signed/os:1"
    run_skopeo(
        *(keys, home, "--insecure-policy", f"--registries.d={home.path}/registries.d", "copy"),
        *("--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"),
        *(f"--sign-by={keys.signer}", registry.name(":latest"), image),
    )
    assert answer(pull, image, *options) == (200, "")
    assert skopeo_says(image, home, *options) == ""


@pytest.mark.slow
def test_what_skopeo_signs_on_its_way_to_a_directory_is_accepted(
    registry: Registry, keys: Keys, home: Home, pull: Pull
) -> None:
    """An index, and each image that it names."""
    home.path.mkdir()
    directory = home.path / "signed"
    run_skopeo(
        *(keys, home, "--insecure-policy", "copy", "--quiet", "--all", "--src-tls-verify=false"),
        *(f"--sign-by={keys.signer}", "--sign-identity=quay.io/acme/os:1"),
        *(registry.name(":index"), f"dir:{directory}"),
    )
    assert (directory / "signature-1").exists()
    keyring = keys.gpg.export(keys.signer)
    for reference, status in (("quay.io/acme/os:1", 200), ("quay.io/acme/os:2", 403)):
        exactly = {"type": "exactReference", "dockerReference": reference}
        scopes = {"dir": {str(home.path): [signed_by(keyring, signedIdentity=exactly)]}}
        home.write("p.json", {"default": [{"type": "reject"}], "transports": scopes})
        for left in (True, NO):  # with that of the index, then with those of its images alone
            (directory / "signature-1").rename(directory / "away") if not left else None
            policy = ("--policy", f"{home.path}/p.json")
            assert answer(pull, f"dir:{directory}", *policy)[0] == status
            assert (not skopeo_says(f"dir:{directory}", home, *policy)) is (status == 200)
            (directory / "away").rename(directory / "signature-1") if not left else None


def test_what_skopeo_signs_by_itself_is_accepted(
    registry: Registry, keys: Keys, home: Home, pull: Pull
) -> None:
    descriptor = registry.images["latest"]
    file, signature = registry.layout.file(descriptor["digest"]), home.path / "signature"
    name = f"{registry.address}/{REPOSITORY}:latest"
    home.path.mkdir(parents=True)
    run_skopeo(
        keys, home, "standalone-sign", str(file), name, keys.signer, "--output", str(signature)
    )
    keyring = home.write("keys.gpg", keys.gpg.export(keys.signer, armor=True))
    by_path = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(keyring)}
    options = with_policy(home, by_path)
    lay(home, descriptor["digest"], signature.read_bytes())
    assert answer(pull, registry.name(":latest"), *options) == (200, "")


@pytest.mark.slow
def test_signatures_lie_on_a_web_server(
    registry: Registry, keys: Keys, home: Home, pull: Pull, tmp_path: Path
) -> None:
    digest = registry.images["latest"]["digest"]
    name = f"{registry.address}/{REPOSITORY}:latest"
    lay(home, digest, keys.gpg.sign(simple(digest, name), keys.signer))
    ring = signed_by(keys.gpg.export(keys.signer))
    with nginx(tmp_path / "nginx", f"root {home.path}/lookaside;") as address:
        web = {"lookaside": f"http://{address}"}
        options = with_policy(home, ring, default_docker=web)
        assert answer(pull, registry.name(":latest"), *options) == (200, "")
        assert skopeo_says(registry.name(":latest"), home, *options) == ""
        log = (tmp_path / "nginx/access.log").read_text()
        path = f"/{REPOSITORY}@{digest.replace(':', '=')}/signature"
        assert log.count(f"GET {path}-1 ") == log.count(f"GET {path}-2 ") == 2
    status, message = answer(pull, registry.name(":latest"), "--retries=0", *options)
    assert status == 504
    assert "lookaside" not in message


# --- indexes --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_index_or_the_image_in_it_is_signed(
    registry: Registry, keys: Keys, home: Home, pull: Pull
) -> None:
    root = registry.images["index"]
    amd64, arm64, *_ = registry.layout.document(root)["manifests"]
    name = f"{registry.address}/{REPOSITORY}:index"
    options = with_policy(home, signed_by(keys.gpg.export(keys.signer)))
    for signed, statuses in (
        (root, [200, 200, 200]),
        (amd64, [200, 403, 403]),
        (arm64, [403, 403, 403]),
    ):
        digest = signed["digest"]
        lay(home, digest, keys.gpg.sign(simple(digest, name), keys.signer))
        child = pull(registry.name(":index"), INSECURE_TLS, *options, policy=None)
        targets = ["/manifest", *(f"/manifests/{each['digest']}" for each in (root, arm64))]
        assert [child.client.get(each).status for each in targets] == statuses
        (layer, *_) = registry.layout.layers(arm64)
        assert child.client.get(f"/blobs/{layer['digest']}").status in (
            (200, 404) if statuses[0] == 200 else (403,)
        )
        assert child.finish() == 0
        lay(home, digest, b"")
        (home.path / f"lookaside/{REPOSITORY}@{digest.replace(':', '=')}/signature-1").unlink()


# --- what cosign attaches -----------------------------------------------------------------------


class Attached(NamedTuple):
    """What is attached to an image in a repository of this name, and the verdict on it.

    `is_new`: skopeo came to know the requirement later than the versions that are in the field.
    """

    layers: Callable[[str], list[Layer]]
    requirement: Json
    accepted: bool
    enabled: bool = True
    is_new: bool = False


SIGNER, RSA, OTHER, LOG = Signer(), rsa_signer(), Signer(), Log()
ROOT = authority()
MIDDLE = between(ROOT)
FRIEND = MIDDLE.issue()
REPOSITORY_ALONE = {"signedIdentity": {"type": "matchRepository"}}


def sigstore_signed(signer: Signer, **fields: object) -> Json:
    return {"type": "sigstoreSigned", "keyData": b64(signer.pem), **REPOSITORY_ALONE, **fields}


FULCIO: Json = {
    "type": "sigstoreSigned",
    "fulcio": {
        "caData": b64(MIDDLE.certificate_pem + ROOT.certificate_pem),
        "oidcIssuer": ISSUER,
        "subjectEmail": EMAIL,
    },
    "rekorPublicKeyData": b64(LOG.pem),
    **REPOSITORY_ALONE,
}


def put_artifact(address: str, repository: str, tag: str, document: Json, *blobs: bytes) -> Json:
    """Put a manifest with its blobs; give its descriptor."""
    for blob in (b"{}", *blobs):
        put_blob(address, repository, blob)
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", **of(b"{}")}
    raw = compact({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, **document})
    put_manifest(address, repository, tag or digest_of(raw), raw, OCI_MANIFEST)
    return {"mediaType": OCI_MANIFEST, **of(raw)}


def of(content: bytes) -> Json:
    return {"digest": digest_of(content), "size": len(content)}


def attach(address: str, repository: str, digest: str, layers: list[Layer]) -> None:
    """Attach signatures to an image, as cosign 1 and 2 do."""
    described = [
        {"mediaType": PAYLOAD, **of(content), "annotations": annotations}
        for content, annotations in layers
    ]
    contents = [content for content, _ in layers]
    tag = f"{digest.replace(':', '-')}.sig"
    put_artifact(address, repository, tag, {"layers": described}, *contents)


def refer(address: str, repository: str, subject: Json, *bundles: Json) -> None:
    """Let bundles refer to an image, as cosign 3 does where a registry does not list them."""
    entries = []
    for each in bundles:
        content = compact(each)
        document = {
            "artifactType": BUNDLE,
            "layers": [{"mediaType": BUNDLE, **of(content)}],
            "subject": subject,
        }
        entry = put_artifact(address, repository, "", document, content)
        entries.append({**entry, "artifactType": BUNDLE})
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    tag = subject["digest"].replace(":", "-")
    put_manifest(address, repository, tag, compact(index), OCI_INDEX)


@pytest.mark.slow
def test_attachments_are_judged_as_skopeo_does(registry: Registry, together: Together) -> None:
    digest = registry.images["latest"]["digest"]
    exact = {"signedIdentity": {"type": "matchRepoDigestOrExact"}}
    logged = sigstore_signed(SIGNER, rekorPublicKeyData=b64(LOG.pem))

    def by(
        *signers: Signer, add: str = "", log: Log | None = None, of: str = digest
    ) -> Callable[[str], list[Layer]]:
        """Return what they attach, all for one digest, with something added to the name."""

        def layers(name: str) -> list[Layer]:
            content = payload(of, name + add)
            return [(content, annotated(content, signer, log)) for signer in signers]

        return layers

    trusted = sigstore_signed(SIGNER)
    cases = {
        "cosign's own": Attached(by(SIGNER), trusted, YES),
        "RSA": Attached(by(RSA), sigstore_signed(RSA), YES),
        "the second": Attached(by(OTHER, SIGNER), trusted, YES),
        "with a tag": Attached(by(SIGNER, add=":1"), sigstore_signed(SIGNER, **exact), YES),
        "another tag": Attached(by(SIGNER, add=":2"), sigstore_signed(SIGNER, **exact), NO),
        "no tag, by default": Attached(by(SIGNER), sigstore_signed(SIGNER, **exact), NO),
        "not looked at": Attached(by(SIGNER), trusted, NO, enabled=False),
        "another key": Attached(by(OTHER), trusted, NO),
        "another repository": Attached(by(SIGNER, add="x"), trusted, NO),
        "another manifest": Attached(by(SIGNER, of="sha256:" + "0" * 64), trusted, NO),
        "in a log": Attached(by(SIGNER, log=LOG), logged, YES, is_new=True),
        "in no log": Attached(by(SIGNER), logged, NO, is_new=True),
        "by Fulcio": Attached(by(FRIEND, log=LOG), FULCIO, YES, is_new=True),
        "by Fulcio, in no log": Attached(by(FRIEND), FULCIO, NO, is_new=True),
    }

    def check(case: Attached, pull: Pull, home: Home) -> None:
        repository = f"attached/{home.path.name}"
        name = f"{registry.address}/{repository}"
        copy(registry, f"docker://{name}:1")
        attach(registry.address, repository, digest, case.layers(name))
        enabled = {"use-sigstore-attachments": case.enabled}
        options = with_policy(home, case.requirement, default_docker=enabled)
        status, message = answer(pull, f"docker://{name}:1", *options)
        assert status == (200 if case.accepted else 403), message
        if not case.is_new:
            said = skopeo_says(f"docker://{name}:1", home, *options)
            # Debian has built it without.
            assert (not said) is case.accepted or "sigstore disabled" in said

    together(cases, check)


def copy(registry: Registry, image: str) -> None:
    skopeo_copy(registry.name(":latest"), image, "--src-tls-verify=false", "--preserve-digests")


@pytest.mark.slow
@pytest.mark.parametrize("signer", [SIGNER, FRIEND], ids=["key", "fulcio"])
def test_bundles_that_refer_to_an_image_are_found(
    signer: Signer, registry: Registry, home: Home, pull: Pull
) -> None:
    """What skopeo does not know yet."""
    subject = registry.images["latest"]
    digest = subject["digest"]
    repository = f"bundles/{'key' if signer is SIGNER else 'fulcio'}"
    name = f"{registry.address}/{repository}"
    copy(registry, f"docker://{name}:1")
    log = None if signer is SIGNER else LOG
    requirement = sigstore_signed(SIGNER) if signer is SIGNER else FULCIO
    options = with_policy(home, requirement, default_docker={"use-sigstore-attachments": True})
    manifest = registry.layout.read(digest)
    by_digest, by_tag = f"docker://{name}@{digest}", f"docker://{name}:1"
    assert answer(pull, by_digest, *options)[0] == 403
    every = [
        (enveloped(statement(digest), signer, log), (200, 200)),
        (messaged(manifest, signer, log), (200, 200)),
        (enveloped(statement(digest, name), signer, log), (200, 200)),
        (enveloped(statement(digest, f"{name}x"), signer, log), (403, 403)),
        (enveloped(statement("sha256:" + "0" * 64, name), signer, log), (403, 403)),
        (enveloped(statement(digest, name), OTHER, log), (403, 403)),
    ]
    for bundle, wanted in some(every if signer is SIGNER else every[1:3]):
        refer(registry.address, repository, subject, bundle)
        found = tuple(answer(pull, image, *options)[0] for image in (by_digest, by_tag))
        assert found == wanted


# --- what is kept in a cache --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attachments", "bundles", "lookaside"])
def test_signatures_are_kept_and_judged_anew(
    kind: str, registry: Registry, keys: Keys, home: Home, pull: Pull, tmp_path: Path
) -> None:
    """Where the registry is away, today's policy decides by the signatures of yesterday."""
    subject, repository = registry.images["latest"], f"kept/{kind}"
    copy(registry, f"docker://{registry.address}/{repository}:1")
    cache = f"--cache={tmp_path / 'cache'}"
    trusted, others = sigstore_signed(SIGNER), sigstore_signed(OTHER)
    with (
        line_to(registry.address) as line,
        nginx(tmp_path / "nginx", f"root {home.path}/lookaside;") as web,
    ):
        name = f"{line.address}/{repository}"
        if kind == "attachments":
            content = payload(subject["digest"], name)
            layers = [(content, annotated(content, SIGNER))]
            attach(registry.address, repository, subject["digest"], layers)
        elif kind == "bundles":
            bundle = enveloped(statement(subject["digest"], name), SIGNER)
            refer(registry.address, repository, subject, bundle)
        else:
            signed = keys.gpg.sign(simple(subject["digest"], f"{name}:1"), keys.signer)
            lay(home, subject["digest"], signed, repository=repository)
            trusted, others = (
                signed_by(keys.gpg.export(each)) for each in (keys.signer, keys.other)
            )
        places = {"lookaside": f"http://{web}", "use-sigstore-attachments": kind != "lookaside"}

        def says(requirement: Json, *options: str) -> tuple[int, str]:
            policy = with_policy(home, requirement, default_docker=places)
            return answer(pull, f"docker://{name}:1", cache, "--retries=0", *policy, *options)

        assert says(trusted) == (200, "")
        line.asked.clear()
        assert says(trusted) == (200, "")
        assert line.paths() == [f"/v2/{repository}/manifests/1"]
        line.dead = True
        assert says(trusted) == says(trusted, "--offline") == (200, "")
        status, message = says(others, "--offline")
        assert status == 403
        assert "is rejected" in message
        assert "--offline forbids asking there" in message


# --- where an image comes from ------------------------------------------------------------------


@pytest.mark.slow
def test_the_name_that_was_asked_for_decides_wherever_the_bytes_are(
    registry: Registry, keys: Keys, home: Home, pull: Pull, tmp_path: Path
) -> None:
    """At a mirror, or here: the same signatures by the same names."""
    digest = registry.images["latest"]["digest"]
    logical = "registry.example/acme/os"
    keyring = signed_by(keys.gpg.export(keys.signer))
    scopes = {"docker": {"registry.example/acme": [keyring]}}
    policy = home.write("policy.json", {"default": [{"type": "reject"}], "transports": scopes})
    home.write("registries.d/a.yaml", {"default-docker": {"lookaside": f"file://{home.path}/ours"}})
    options = ("--policy", str(policy), "--registries.d", f"{home.path}/registries.d")
    home.write(
        ".config/containers/registries.conf",
        table("registry.example/acme/os", f"{registry.address}/nothing/here", "insecure = true")
        + mirror(f"{registry.address}/{REPOSITORY}", "insecure = true"),
    )
    write = f"@{digest.replace(':', '=')}/signature-1"

    def sideload(*more: str) -> int:
        pattern = f"{tmp_path}/<name>/<ref>"
        image = ("registry.example/acme/os:latest", "--sideload", pattern, *options, *more)
        return answer(pull, *image)[0]

    (tmp_path / "acme/os").mkdir(parents=True)
    registry.layout.save(registry.images["latest"])
    (tmp_path / "acme/os/latest").symlink_to(registry.layout.path)
    for name, status in (
        (f"{logical}:latest", 200),
        (f"{registry.address}/{REPOSITORY}:latest", 403),
    ):
        signature = keys.gpg.sign(simple(digest, name), keys.signer)
        home.write(f"ours/{REPOSITORY}{write}", signature)
        child = pull("registry.example/acme/os:latest", "--retries=0", *options, policy=None)
        assert child.client.get("/manifest").status == status
        assert child.finish() == 0
        assert sideload("--offline") == status
    (home.path / f"ours/{REPOSITORY}{write}").unlink()
    assert sideload("--offline") == 403


# --- places that cannot be reached ----------------------------------------------------------------

NOBODY = "Connection refused"


@pytest.mark.slow
def test_a_dead_primary_beside_a_mirror(
    registry: Registry, keys: Keys, home: Home, pull: Pull
) -> None:
    digest = registry.images["latest"]["digest"]
    image, dead = "registry.example/acme/os:latest", f"127.0.0.1:{free_port()}/dead/os"
    home.write(
        ".config/containers/registries.conf",
        table("registry.example/acme/os", dead, "insecure = true")
        + mirror(f"{registry.address}/{REPOSITORY}", "insecure = true"),
    )
    ours = signed_by(keys.gpg.export(keys.signer))
    both = [ours, signed_by(keys.gpg.export(keys.other))]
    good = keys.gpg.sign(simple(digest, image), keys.signer)
    bad = keys.gpg.sign(simple(digest, image), keys.other)
    by_none = "it is by none of the keys"
    for at_mirror, at_primary, requirements, status, words in (
        ([], [], [ours], 504, [NOBODY]),
        ([bad], [], [ours], 403, [by_none, NOBODY]),
        ([], [bad], [ours], 403, [by_none, NOBODY]),
        ([good], [], both, 403, [by_none, NOBODY]),
        ([good], [], [ours], 200, []),
        ([bad], [good], [ours], 200, []),  # its lookaside is another server
        ([good], [bad], both, 200, []),
    ):
        shutil.rmtree(home.path / "lookaside", ignore_errors=True)
        lay(home, digest, *at_mirror)
        lay(home, digest, *at_primary, repository="dead/os")
        options = with_policy(home, *requirements)
        found, message = answer(pull, image, "--retries=0", *options)
        assert found == status, message
        assert all(word in message for word in words), message


@pytest.mark.slow
def test_a_dead_lookaside_beside_attachments(registry: Registry, home: Home, pull: Pull) -> None:
    digest = registry.images["latest"]["digest"]
    lookaside = {
        "lookaside": f"http://127.0.0.1:{free_port()}",
        "use-sigstore-attachments": True,
    }
    for signer, status, words in (
        (None, 504, [NOBODY]),
        (OTHER, 403, ["it is by none of the keys", NOBODY]),
        (SIGNER, 200, []),
    ):
        repository = f"dead/{status}"
        name = f"{registry.address}/{repository}"
        copy(registry, f"docker://{name}:1")
        if signer is not None:
            content = payload(digest, name)
            layers = [(content, annotated(content, signer))]
            attach(registry.address, repository, digest, layers)
        options = with_policy(home, sigstore_signed(SIGNER), default_docker=lookaside)
        found, message = answer(pull, f"docker://{name}:1", "--retries=0", *options)
        assert found == status, message
        assert all(word in message for word in words), message


# --- what it costs ------------------------------------------------------------------------------

HEAVY = (
    "cryptography",
    "pysequoia",
    "yaml",
    "imgproxy.verification.signatures",
    "imgproxy.config.signature_requirements",
)


def test_who_demands_no_signatures_does_not_pay_for_them(
    registry: Registry, home: Home, pull: Pull
) -> None:
    home.write("registries.d/broken.yaml", "[")
    options = ("--registries.d", f"{home.path}/registries.d", INSECURE_TLS)
    child = pull(registry.name(":latest"), *options, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert child.client.get("/manifest").status == 200
    assert child.finish() == 0
    imported = {line.rpartition("|")[2].strip() for line in child.stderr.splitlines()}
    assert "imgproxy.config.policy" in imported
    assert not [each for each in imported if each.startswith(HEAVY)]


KEYBOX = bytes.fromhex("00000020010100024b42586600000000") + bytes(16)
OLD_KEY = version3.packet(6, b"\3" + bytes(11)) + version3.packet(13, b"old")


@pytest.mark.slow
def test_a_key_that_cannot_be_read_is_passed_over_with_a_line(
    registry: Registry, keys: Keys, home: Home, pull: Pull
) -> None:
    image, digest = registry.name(":latest"), registry.images["latest"]["digest"]
    name = f"{registry.address}/{REPOSITORY}:latest"
    keyring = home.write("keys.gpg", OLD_KEY + keys.gpg.export(keys.signer))
    by_path = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(keyring)}
    options = (*with_policy(home, by_path), INSECURE_TLS)
    lay(home, digest, keys.gpg.sign(simple(digest, name), keys.signer))
    for quiet in ((), ("--quiet",)):
        child = pull(image, *options, *quiet, policy=None)
        assert [child.client.get("/manifest").status for _ in range(2)] == [200, 200]
        assert child.finish() == 0
        lines = [line for line in child.stderr.splitlines() if "passed over" in line]
        assert len(lines) == (0 if quiet else 1)
        assert all(
            line.startswith(f"imgproxy: warning: {keyring}: key 1 of version 3 (old): ")
            for line in lines
        )


@pytest.mark.slow
def test_a_broken_policy_or_a_key_that_is_not_there_serves_nothing(
    registry: Registry, home: Home, pull: Pull
) -> None:
    missing = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": f"{home.path}/absent"}
    for requirement, words in (
        (missing, "No such file"),
        ({**missing, "keyData": "eA=="}, "expected one of keyPath, keyPaths, keyData"),
        (signed_by(b"no key"), "is unusable"),
        (signed_by(KEYBOX), "it is a keybox (pubring.kbx), which GnuPG alone reads"),
        (signed_by(OLD_KEY), "is unusable: key 1 of version 3 (old): "),
        (sigstore_signed(SIGNER, keyData=b64(b"no key")), "is unusable"),
    ):
        status, message = answer(pull, registry.name(":latest"), *with_policy(home, requirement))
        assert status == 500
        assert words in message
