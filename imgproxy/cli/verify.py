"""`imgproxy verify`: every blob of a store hashed again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgproxy.cli import stored_names
from imgproxy.cli.options import Options
from imgproxy.errors import InvalidError, clean
from imgproxy.store.content_store import ContentStore
from imgproxy.verification.stored_blobs import Finding, StoreCheck

if TYPE_CHECKING:
    from imgproxy.cli.parser import Parser
    from imgproxy.host.diagnostics import Diagnostics

DESCRIPTION = "Hash every blob of a store again, and look for those that its names need."


class VerifyOptions(Options):
    """The options of `verify`."""

    store: str


def add_options(parser: Parser) -> None:
    """See `commands.Command`."""
    parser.add_argument(
        "store",
        metavar="oci:DIR",
        type=stored_names.directory,
        help="the store, which may be any OCI layout",
    )


async def run(options: VerifyOptions, diagnostics: Diagnostics) -> dict[str, Any]:
    """See `commands.Command`. Raises `InvalidError` where something is wrong."""
    store = ContentStore(options.store)
    store.check()
    found: list[Finding] = []

    def report(finding: Finding) -> None:
        found.append(finding)
        names = ", ".join(map(clean, finding.names)) or "nothing"
        by = "" if finding.digest is None else f" (named by {names})"
        diagnostics.progress(f"{finding.failure.message}{by}")

    check = StoreCheck(store, report)
    await check.run()
    unknown = [*map(clean, check.unknown)]
    counts: dict[str, Any] = {"blobs": check.blobs, "bytes": check.bytes, "unknown": unknown}
    for path in unknown:
        diagnostics.progress(f"not looked into: {path}")
    if found:
        raise InvalidError(
            f"{clean(store.path)}: {len(found)} of its blobs and entries are wrong or missing, of"
            f" {check.blobs} blobs that were hashed; remove the files that are wrong, and pull the"
            " names again",
            code="DIGEST_INVALID",
            wrong=[_described(each) for each in found],
            **counts,
        )
    diagnostics.progress(f"{check.blobs} blobs, {check.bytes} bytes: all as they should be")
    return counts


def _described(finding: Finding) -> dict[str, Any]:
    return {
        "digest": None if finding.digest is None else str(finding.digest),
        "code": finding.failure.code,
        "message": finding.failure.message,
        "names": list(finding.names),
    }
