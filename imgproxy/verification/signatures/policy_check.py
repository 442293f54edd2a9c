"""The check of documents against a policy that requires signatures: containers-policy.json(5).

Every requirement must be met, each by any one signature, wherever that was found: what a signature
proves does not depend on its place. Places are read one after the other, and no more of them than
it takes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from imgproxy.config import signed_identity
from imgproxy.config.signature_requirements import SignedBy
from imgproxy.errors import HOST_FAILURES, DeniedError, Failure, InvalidError, shortage
from imgproxy.host.blocking_calls import settle
from imgproxy.specs.oci.manifest import Index
from imgproxy.specs.signing.signature import SignatureError
from imgproxy.verification.documents import has_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgproxy.config.policy import Conditions
    from imgproxy.config.signature_requirements import SigstoreSigned
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.manifest import Manifest
    from imgproxy.specs.signing.signature import Signature
    from imgproxy.specs.signing.simple_signing import Claim
    from imgproxy.transports.source import SignaturePlace, Source
    from imgproxy.verification.documents import VerifiedDocument

# A message with the reasons of a hundred signatures is too long to be read.
_MAX_REASONS = 8


class _Verifier(Protocol):
    def verify(self, signature: Signature, document: VerifiedDocument) -> Claim:
        """Return what a signature claims. Raises `SignatureError`."""


class _Condition(NamedTuple):
    """A requirement, and what verifies signatures for it."""

    requirement: SignedBy | SigstoreSigned
    verifier: _Verifier


class _Search(NamedTuple):
    """What came of looking for signatures of several documents, none of which was enough.

    `reasons` has one entry for each document, `found` the names of signatures, and of places whose
    content is none; `later` are the failures of places that may succeed later.
    """

    reasons: list[str]
    found: list[str]
    later: list[Failure]


class PolicyCheck:
    """The check of the documents of one source; `indexes` are those known so far.

    `warn` takes a line about each key of the policy that is passed over. Raises
    `ConfigurationError` for a key that the policy names and that is unusable, and `DeniedError`
    where a library is missing.
    """

    def __init__(
        self,
        conditions: Conditions,
        source: Source,
        indexes: Mapping[Digest, Index],
        warn: Callable[[str], None],
    ) -> None:
        self._indexes = indexes
        self._where = conditions.where
        self._source = source
        self._accepted: set[Digest] = set()
        try:
            self._conditions = [_condition(each, warn) for each in conditions.requirements]
        except ImportError as error:
            raise shortage(f"importing {error.name}", error) or DeniedError(
                f"{source.name} is rejected: {self._where} requires signatures, and to verify them"
                f" {error.name} is needed: pip install 'oci-imgproxy[signatures]'"
            ) from None

    async def check(self, *documents: VerifiedDocument) -> None:
        """Return if one of these documents is acceptable: on its own, or named by one that is.

        Raises `DeniedError`, with the reason of each signature and of each place that failed. Where
        nothing was found, and a place may succeed later, it raises the failure of that place.
        """
        search = _Search([], [], [])
        for document in documents:
            if document.digest in self._accepted or await self._is_signed(document, search):
                self._accept(document.digest, document.parsed)
                return
        reasons = "; ".join(search.reasons)
        if search.later and not search.found:
            message = f"{self._source.name} cannot be checked now: {reasons}"
            failure = search.later[0].merged(search.later, message)
            search.later.clear()  # their tracebacks hold frames that hold the list
            raise failure
        raise DeniedError(f"{self._source.name} is rejected: {reasons}")

    def _accept(self, digest: Digest, document: Manifest | Index | None) -> None:
        """Note an accepted document; what an index names is signed with it, by its digest."""
        self._accepted.add(digest)
        if isinstance(document, Index):
            for entry in document.manifests:
                if entry.digest not in self._accepted:
                    self._accept(entry.digest, self._indexes.get(entry.digest))

    async def _is_signed(self, document: VerifiedDocument, search: _Search) -> bool:
        """Return whether every requirement is met; otherwise add to the search why not."""
        left = list(self._conditions)
        why: list[str] = []
        failed: list[str] = []
        places = await settle(self._source.signatures, document.digest)
        for place in places:
            try:
                signatures = await place.read()
            except HOST_FAILURES:
                raise
            except Failure as failure:
                if isinstance(failure, InvalidError):
                    search.found.append(place.name)
                elif failure.retryable:
                    search.later.append(failure)
                failed.append(f"[{place.name}] {failure.message}")
                continue
            search.found.extend(each.name for each in signatures)
            # A signature takes milliseconds, and there may be many of them.
            left = await trio.to_thread.run_sync(
                partial(self._unmet, left, signatures, document, why)
            )
            if not left:
                return True
        kinds = " and ".join(each.requirement.kind for each in left)
        search.reasons.append(
            f"{self._where} requires {kinds} of {document.digest}: {_listed(why, failed, places)}"
        )
        return False

    def _unmet(
        self,
        conditions: list[_Condition],
        signatures: list[Signature],
        document: VerifiedDocument,
        why: list[str],
    ) -> list[_Condition]:
        """Return the conditions that none of the signatures meets."""
        return [
            condition
            for condition in conditions
            if not any(self._meets(condition, each, document, why) for each in signatures)
        ]

    def _meets(
        self,
        condition: _Condition,
        signature: Signature,
        document: VerifiedDocument,
        why: list[str],
    ) -> bool:
        try:
            claim = condition.verifier.verify(signature, document)
            self._check_claim(condition, claim, document)
        except Exception as error:  # noqa: BLE001  (one bad signature must not hide a good one)
            if failure := shortage(f"verifying {signature.name}", error):
                raise failure from None
            known = isinstance(error, SignatureError)
            message = str(error) if known else f"it cannot be examined ({type(error).__name__})"
            reason = f"[{signature.name}] {message}"
            if reason not in why:
                why.append(reason)
            return False
        return True

    def _check_claim(self, condition: _Condition, claim: Claim, document: VerifiedDocument) -> None:
        """Raise `SignatureError` where a valid signature is for another image."""
        if not has_digest(document, claim.digest):
            raise SignatureError(f"it is for {claim.digest}")
        wanted, image = condition.requirement.identity, self._source.identity.reference
        if claim.reference is None:
            if not signed_identity.accepts_unnamed(wanted, image):
                raise SignatureError(
                    "it names no image, which is enough only for an image requested by digest, or"
                    f" with matchRepository (signedIdentity: {wanted.kind})"
                )
        elif not signed_identity.accepts(wanted, image, claim.reference):
            raise SignatureError(
                f"it is for the name {claim.reference} (signedIdentity: {wanted.kind})"
            )


def _listed(why: list[str], failed: list[str], places: list[SignaturePlace]) -> str:
    """Return the part of a message that says why no signature was accepted.

    `why` are the reasons of the signatures, `failed` those of the places that could not be read.
    """
    if not why and not failed:
        searched = " and ".join(place.name for place in places)
        return f"there is no signature ({searched or 'its transport has none'})"
    more = len(why) - _MAX_REASONS
    omitted = [f"and {more} more"] if more > 0 else []
    return "; ".join([*why[:_MAX_REASONS], *omitted, *failed])


def _condition(requirement: SignedBy | SigstoreSigned, warn: Callable[[str], None]) -> _Condition:
    if isinstance(requirement, SignedBy):
        from imgproxy.verification.signatures import openpgp

        return _Condition(requirement, openpgp.Verifier(requirement, warn))
    from imgproxy.verification.signatures import sigstore

    return _Condition(requirement, sigstore.Verifier(requirement))
