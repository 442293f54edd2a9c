"""What a signature says: containers-signature(5), "simple signing", and cosign's form of it.

The name that an image was signed by and the digest of its manifest, in JSON whose every key is
known: what is signed must not be open to a second reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import BadRequestError
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields, shown
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import reference as references
from imgproxy.specs.signing.signature import SignatureError

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.reference import Reference

ATOMIC = "atomic container signature"
COSIGN = "cosign container image signature"


class Claim(NamedTuple):
    """What was signed: a manifest, under a name; None where only bytes were."""

    digest: Digest
    reference: Reference | None


def parse(payload: bytes, wanted_type: str) -> Claim:
    """Give the claim in a payload of the wanted type, `ATOMIC` or `COSIGN`.

    Raises `SignatureError` for whatever is not exactly that.
    """
    try:
        document = Fields(strict_json.loads(payload))
        _exactly(document, {"critical", "optional"})
        critical = document.object("critical")
        _exactly(critical, {"type", "image", "identity"})
        said = critical.text("type")
        if said != wanted_type:
            raise FieldError(f"critical.type: expected {shown(wanted_type)}, got {shown(said)}")
        image, identity = critical.object("image"), critical.object("identity")
        _exactly(image, {"docker-manifest-digest"})
        _exactly(identity, {"docker-reference"})
        if wanted_type == ATOMIC or "optional" in document:  # cosign writes null for nothing
            _check_optional(document.object("optional"))
        return Claim(
            digests.parse(image.text("docker-manifest-digest")),
            references.parse_named(identity.text("docker-reference")),
        )
    except BadRequestError as error:
        raise SignatureError(f"its payload: {error.message}") from None
    except ValueError as error:  # of a field, of JSON, of a digest
        raise SignatureError(f"its payload: {error}") from None


def _exactly(fields: Fields, keys: set[str]) -> None:
    """Refuse an object that does not have these keys and no others."""
    for key in [*fields, *sorted(keys)]:
        if key not in keys:
            raise FieldError(f"{fields.at(key)}: unknown key")
        if key not in set(fields):
            raise FieldError(f"{fields.at(key)}: missing")


def _check_optional(fields: Fields) -> None:
    """Refuse what is wrong of what is known; whoever signs may add to it."""
    fields.optional_text("creator")
    fields.optional_integer("timestamp")
