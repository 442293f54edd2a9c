"""The configuration of a service that runs for months: what changes in it counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from imgproxy.config import policy as policies
from imgproxy.host.configuration import Configuration, Overrides
from imgproxy.host.file_changes import SeenFiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.config.certs import Certificates
    from imgproxy.config.policy import Policy
    from imgproxy.host.diagnostics import Diagnostics

T = TypeVar("T")

# What is kept once it has been read.
_KEPT = ("registries", "short_names", "_signature_sections")


class WatchedConfiguration(Configuration):
    """A configuration that tells whether something that it was read from has changed.

    That are the files that were read or looked for, the directories that were listed, the keys that
    the policy names, and the certificates for registries.
    """

    def __init__(self, chosen: Overrides, diagnostics: Diagnostics) -> None:
        super().__init__(chosen, diagnostics)
        self._files = SeenFiles()
        self._host = self._host._replace(
            exists=self._noting(self._host.exists),
            names=self._noting(self._host.names),
            directories=self._noting(self._host.directories),
        )

    def have_changed(self) -> bool:
        """Return whether something has changed; it is read anew from now on.

        What was made of it before is for the caller to forget. It is looked at once in
        `file_changes.INTERVAL` at most.
        """
        changed = self._files.have_changed()
        if changed:
            for name in _KEPT:
                self.__dict__.pop(name, None)
        return changed

    def policy(self) -> Policy:
        """See `Configuration`."""
        policy = super().policy()
        for path in policies.key_paths(policy):
            self._files.note(path)
        return policy

    def certificates(self, registry: str) -> Certificates:
        """See `Configuration`."""
        certificates = super().certificates(registry)
        for path in certificates.paths:
            self._files.note(path)
        return certificates

    def _noting(self, look: Callable[[str], T]) -> Callable[[str], T]:
        def noting(path: str) -> T:
            self._files.note(path)
            return look(path)

        return noting

    def _read(self, what: str, path: str) -> bytes:
        self._files.note(path)
        return super()._read(what, path)
