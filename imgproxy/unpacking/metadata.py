"""What an unpacked file is given of what its layer says, and what of that is lost."""

from __future__ import annotations

import errno
import os
from collections import Counter
from typing import TYPE_CHECKING

from imgproxy.unpacking import entry_names, ownership
from imgproxy.unpacking.entry_names import MemberError
from imgproxy.unpacking.tree import Attributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.specs.oci.tar_layers import Member
    from imgproxy.unpacking.ownership import Ownership

# What a layer may not bring: labels of the host's own policy and measurements, what overlayfs and
# its replacements take for instructions, and records of owners, which would be lies.
_NEVER = frozenset(
    (
        *(b"security.selinux", b"security.ima", b"security.evm", b"system.nfs4_acl"),
        *(ownership.RECORD, b"user.containers.override_stat"),
    )
)
_NEVER_BELOW = (b"trusted.", b"user.overlay.")
_CAPABILITY = b"security.capability"

# ext4 has times until May 2446, and nanoseconds since 1970 in 64 bits begin in 1677.
_MAX_TIME = 15_032_385_535 * 10**9
_MIN_TIME = -(2**63)


class Metadata:
    """The attributes of unpacked files; `lost` counts what could not be kept, by kind.

    `warn` is called once for each kind. `is_privileged`: capabilities may be set.
    """

    def __init__(
        self, ownership: Ownership, warn: Callable[[str], None], *, is_privileged: bool
    ) -> None:
        self.lost: Counter[str] = Counter()
        self._ownership = ownership
        self._warn = warn
        self._is_privileged = is_privileged
        self.implied = self._attributes(0, 0, 0o755, (), 0, can_record=True)

    @property
    def hint(self) -> str:
        """The way out where an owner cannot be set, for a message."""
        if self._ownership.way in ("me", "record"):
            return ""
        return (
            "; owners can be set by root alone, and in a user namespace only to those that it has"
            " (subuid(5)): see --owner"
        )

    def lose(self, kind: str, warning: str) -> None:
        """Count something that is lost, and warn of the first of its kind."""
        self.lost[kind] += 1
        if self.lost[kind] == 1:
            self._warn(warning)

    def of(self, member: Member) -> Attributes:
        """Return what the file of a member is given. Raises `MemberError`."""
        mode = None if member.kind == "symlink" else member.mode
        mtime = member.mtime if _MIN_TIME <= member.mtime <= _MAX_TIME else 0
        can_record = member.kind in ("file", "directory")
        xattrs = self._kept(member, has_user=can_record) if member.xattrs else ()
        try:
            return self._attributes(
                member.uid, member.gid, mode, xattrs, mtime, can_record=can_record
            )
        except MemberError as error:
            raise entry_names.invalid(member.name, error.message) from None

    def _attributes(
        self,
        uid: int,
        gid: int,
        mode: int | None,
        xattrs: tuple[tuple[bytes, bytes], ...],
        mtime: int,
        *,
        can_record: bool,
    ) -> Attributes:
        owner = self._ownership.owner(uid, gid)
        record = self._ownership.record(uid, gid)
        if record is not None and can_record:
            xattrs = (*xattrs, (ownership.RECORD, record))
        elif record is not None:
            self.lose("owners", "owners of links, devices and FIFOs cannot be recorded")
        return Attributes(owner, mode, xattrs, mtime)

    def _kept(self, member: Member, *, has_user: bool) -> tuple[tuple[bytes, bytes], ...]:
        """Return the extended attributes that a file may have; `has_user`: also those of users."""
        kept = []
        for name, value in member.xattrs.items():
            if name in _NEVER or name.startswith(_NEVER_BELOW):
                continue
            if name.startswith(b"user.") and not has_user:
                continue  # the system has them on files and directories alone (xattr(7))
            if name == _CAPABILITY and not self._is_privileged:
                self.lose(
                    "capabilities",
                    f"{entry_names.shown(member.name)}: only root can give capabilities to files",
                )
                continue
            kept.append((name, value))
        return tuple(sorted(kept))

    def note(self, path: bytes, failed: list[tuple[bytes, OSError]]) -> None:
        """Count extended attributes that could not be set.

        Not every file system has each, and not every user may set it. Raises `MemberError` for one
        that means nothing to the system, and `OSError` of another kind.
        """
        for name, error in failed:
            what, reason = entry_names.shown(name), os.strerror(error.errno or 0)
            if error.errno == errno.EINVAL:
                raise entry_names.invalid(path, f"{what} cannot be set to that: {reason}")
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
                raise OSError(error.errno, f"{what} cannot be set: {reason}")
            kind = "owners" if name == ownership.RECORD else "xattrs"
            self.lose(kind, f"{entry_names.shown(path)}: {what} cannot be set here: {reason}")
