"""The payload of a signature: containers-signature(5), "simple signing", and cosign's form of it.

It holds the name under which an image was signed and the digest of its manifest. Unknown keys are
refused, since signed content must not have a second interpretation.
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
    """The signed statement: the digest of a manifest and its name, None where it has none."""

    digest: Digest
    reference: Reference | None


def parse(payload: bytes, wanted_type: str) -> Claim:
    """Return the claim in a payload of the wanted type, `ATOMIC` or `COSIGN`.

    Raises `SignatureError` for any deviation from the format.
    """
    try:
        document = Fields(strict_json.loads(payload))
        _check_keys(document, {"critical", "optional"})
        critical = document.object("critical")
        _check_keys(critical, {"type", "image", "identity"})
        kind = critical.text("type")
        if kind != wanted_type:
            raise FieldError(f"critical.type: expected {shown(wanted_type)}, got {shown(kind)}")
        image, identity = critical.object("image"), critical.object("identity")
        _check_keys(image, {"docker-manifest-digest"})
        _check_keys(identity, {"docker-reference"})
        if wanted_type == ATOMIC or "optional" in document:  # cosign writes null for none
            _check_optional(document.object("optional"))
        return Claim(
            digests.parse(image.text("docker-manifest-digest")),
            references.parse_named(identity.text("docker-reference")),
        )
    except BadRequestError as error:
        raise SignatureError(f"its payload: {error.message}") from None
    except ValueError as error:  # of a field, JSON or a digest
        raise SignatureError(f"its payload: {error}") from None


def _check_keys(fields: Fields, keys: set[str]) -> None:
    """Refuse an object that does not have exactly these keys."""
    for key in [*fields, *sorted(keys)]:
        if key not in keys:
            raise FieldError(f"{fields.at(key)}: unknown key")
        if key not in set(fields):
            raise FieldError(f"{fields.at(key)}: missing")


def _check_optional(fields: Fields) -> None:
    """Refuse wrong types of the known members; signers may add others."""
    fields.optional_text("creator")
    fields.optional_whole_number("timestamp")
