"""Certificates for one registry: containers-certs.d(5), and Docker's directory of the same form.

A directory has the name of the registry, `host[:port]`, and the names of its files determine their
use: `*.crt` holds authorities to trust beside the system's, `NAME.cert` and `NAME.key` are a
client's certificate and its key. Other files are ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import ConfigurationError, clean

if TYPE_CHECKING:
    from collections.abc import Collection


class Certificates(NamedTuple):
    """The files that apply to a registry, each kind in the order of names.

    A file of `authorities` that does not exist when it is read, because its link is dangling or it
    has just been removed, is skipped. Both files of a client's pair must be readable.
    """

    authorities: tuple[str, ...] = ()
    clients: tuple[tuple[str, str], ...] = ()

    @property
    def paths(self) -> list[str]:
        """Return the paths of all files."""
        return [*self.authorities, *(path for pair in self.clients for path in pair)]


def choose(directory: str, names: Collection[str]) -> Certificates:
    """Return the paths of the files in a registry's directory, by their use.

    `names` are those of all files in it. Raises `ConfigurationError` for a client's certificate
    without a key, or the reverse.
    """
    stems = {
        kind: {name.removesuffix(kind) for name in names if name.endswith(kind)}
        for kind in (".crt", ".cert", ".key")
    }
    for stem in sorted(stems[".cert"] ^ stems[".key"]):
        _refuse_half(directory, stem, ".cert" if stem in stems[".cert"] else ".key")
    return Certificates(
        tuple(f"{directory}/{stem}.crt" for stem in sorted(stems[".crt"])),
        tuple(
            (f"{directory}/{stem}.cert", f"{directory}/{stem}.key")
            for stem in sorted(stems[".cert"])
        ),
    )


def _refuse_half(directory: str, stem: str, there: str) -> None:
    missing = ".key" if there == ".cert" else ".cert"
    hint = "; the certificate of an authority has a name in .crt" if there == ".cert" else ""
    raise ConfigurationError(
        f"{clean(directory)}: a client certificate has two files, and there is"
        f" {clean(stem + there)} without {clean(stem + missing)}{hint}",
        file=f"{directory}/{stem}{there}",
    )
