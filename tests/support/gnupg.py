"""GnuPG: keys that were made, extended, revoked and used at whatever time, by the real program."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from support import version3
from support.servers import require

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def gnupg() -> Iterator[Gnupg]:
    """Make a keyring, and end the agent that gpg starts for it."""
    # Not below pytest's directory: sockets lie there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="gnupg", ignore_cleanup_errors=True) as directory:
        gpg = Gnupg(Path(directory) / "home")
        try:
            yield gpg
        finally:
            subprocess.run(
                [require("gpgconf"), "--homedir", str(gpg.home), "--kill", "all"],
                timeout=60,
                check=False,
            )


class Gnupg:
    """A keyring of its own.

    Times are gpg's: `20250131T235959`.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700, parents=True)

    def run(self, *arguments: str, at: str | None = None, given: bytes = b"") -> bytes:
        """Run gpg as of a time; return what it prints."""
        time = ["--faked-system-time", at] if at else []
        command = [require("gpg"), "--homedir", str(self.home), "--batch", "--yes", "--quiet"]
        result = subprocess.run(
            [*command, "--passphrase", "", "--trust-model", "always", *time, *arguments],
            input=given,
            capture_output=True,
            timeout=60,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"gpg {arguments}: {result.stderr.decode()}")
        return result.stdout

    def key(
        self,
        name: str,
        *,
        use: str = "sign",
        expire: str = "never",
        at: str = "20250101T000000",
        algorithm: str = "ed25519",
    ) -> str:
        """Make a key for `name`; return its fingerprint."""
        self.run("--quick-generate-key", name, algorithm, use, expire, at=at)
        return self.fingerprints(name)[0]

    def subkey(
        self,
        primary: str,
        *,
        use: str = "sign",
        expire: str = "never",
        at: str = "20250102T000000",
        algorithm: str = "ed25519",
    ) -> str:
        """Add a subkey, which signs by default; return its fingerprint."""
        self.run("--quick-add-key", primary, algorithm, use, expire, at=at)
        return self.fingerprints(primary)[-1]

    def fingerprints(self, name: str) -> list[str]:
        """Return the fingerprints of a key and its subkeys."""
        listed = self.run("--list-keys", "--with-colons", name).decode().splitlines()
        return [line.split(":")[9] for line in listed if line.startswith("fpr:")]

    def revoke(self, fingerprint: str) -> None:
        """Revoke a key by the certificate that gpg makes for every new one."""
        file = self.home / f"openpgp-revocs.d/{fingerprint}.rev"
        # A colon keeps it from being used by accident.
        self.run("--import", given=file.read_bytes().replace(b":-----BEGIN", b"-----BEGIN"))

    def edit(self, fingerprint: str, *lines: str) -> None:
        """Enter these lines at `gpg --edit-key`."""
        self.run(
            "--command-fd", "0", "--edit-key", fingerprint, given="\n".join([*lines, ""]).encode()
        )

    def export(self, *names: str, armor: bool = False) -> bytes:
        """Return the public keys."""
        return self.run(*(["--armor"] if armor else []), "--export", *names)

    def sign(
        self, content: bytes, by: str, *options: str, mode: str = "--sign", at: str | None = None
    ) -> bytes:
        """Sign as a key, a subkey of which is written with a `!`; return the message."""
        return self.run("--local-user", by, *options, mode, given=content, at=at)

    def sign_version_3(
        self, content: bytes, by: str, *, at: str | None = None, **fields: int
    ) -> bytes:
        """Sign as the RSA key with this fingerprint; return the message.

        GnuPG 2 verifies such signatures, but makes none any more. `fields` are those of
        `version3.signature`.
        """
        time = datetime.strptime(f"{at}Z", "%Y%m%dT%H%M%S%z") if at else datetime.now(UTC)
        key = version3.private_key(self.run("--export-secret-keys", by), by)
        signed = version3.signature(content, key, by, int(time.timestamp()), **fields)
        return version3.message(content, signed)

    def verify(self, message: bytes, at: str | None = None) -> bool:
        """Return whether gpg verifies a message."""
        try:
            self.run("--verify", given=message, at=at)
        except RuntimeError:
            return False
        return True
