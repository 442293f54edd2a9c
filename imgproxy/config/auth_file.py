"""Files of credentials: containers-auth.json(5), Docker's config.json, its older .dockercfg.

What one file says is found here; which files there are is the caller's. A file that is there but
broken is an error and never anonymous access by accident, and complaints say what kind of value
stands where, but never the value.

Docker writes the same file and reads more of it than the containers libraries do: `credsStore`, a
helper for all registries, an entry with an identity token alone, and a `credHelpers` entry with
an empty name, which keeps a registry out of the store. Those count here as well.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.config.credential_helpers import Helper, any_credentials, make_helper
from imgproxy.errors import ConfigurationError, clean
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, PrivateFields

if TYPE_CHECKING:
    from imgproxy.specs.http.credentials import Credentials

# The name under which Docker keeps logins to Docker Hub, in files and in helpers.
_HUB = "https://index.docker.io/v1/"
_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})

# RFC 4648 section 4, padded; Go's decoder, like this one, is told to pass over line ends first.
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


class _Entry(NamedTuple):
    auth: str
    identity_token: str

    def __repr__(self) -> str:
        return "<an entry>"


class AuthFile(NamedTuple):
    """What a file says. `path` names it in messages; a `legacy` one knows hosts alone."""

    path: str
    legacy: bool
    auths: dict[str, _Entry]
    helpers: dict[str, str]
    store: str

    def __repr__(self) -> str:
        return f"<AuthFile {self.path}>"

    def find(self, registry: str, repository: str) -> Credentials | Helper | None:
        """Give what this file has for a repository, None where another may be consulted.

        A registry's own helper comes first. Then the entry that speaks of the repository, if it
        holds anything; Docker leaves empty ones where it has put the login into the store. Then
        the store.

        Raises `ConfigurationError` for an entry or a helper's name that is needed and malformed.
        """
        place = next((key for key in _hub_names(registry) if key in self.helpers), None)
        if place is not None and self.helpers[place]:
            return self._helper(f"credHelpers.{place}", self.helpers[place], registry, place)
        key = self._key(registry, repository)
        credentials = None if key is None else self._credentials(key)
        if credentials is not None or place is not None or not self.store:
            return credentials
        first = _HUB if registry in _HUB_HOSTS else registry
        return self._helper("credsStore", self.store, registry, first, promised=key is not None)

    def _helper(
        self, place: str, name: str, registry: str, first: str, *, promised: bool = True
    ) -> Helper:
        servers = (first, *(server for server in _hub_names(registry) if server != first))
        return make_helper(
            name, servers, f"{clean(place)} in {clean(self.path)}", promised=promised
        )

    def _key(self, registry: str, repository: str) -> str | None:
        """Give the key that speaks of a repository, the longest first.

        The first that exists is the only one, even if its entry is empty: whoever gives a
        namespace an entry of its own does not mean that of the registry.
        """
        names = [registry] if self.legacy else _namespaces(f"{registry}/{repository}")
        exact = next((name for name in names if name in self.auths), None)
        if exact is not None:
            return exact
        # Docker has taken URLs for names of registries, and wrote them as they were typed.
        host = _normal(registry)
        return next((key for key in self.auths if self._host(key) == host), None)

    def _host(self, key: str) -> str:
        """Give the host that a key stands for; without a scheme, a path is a namespace."""
        rest = key.removeprefix("http://").removeprefix("https://")
        return _normal(rest.partition("/")[0] if self.legacy or rest != key else rest)

    def _credentials(self, key: str) -> Credentials | None:
        """Give what an entry holds, None if nothing.

        One without a colon is passed over as if empty, and with it its token, as it is by all
        readers of the file.
        """
        auth, identity_token = self.auths[key]
        place = key if self.legacy else f"auths.{key}"
        try:
            username, colon, password = _decode(auth)
        except ValueError as error:
            raise _broken(self.path, f"{clean(place)}.auth: {error}") from None
        if auth and not colon:
            return None
        return any_credentials(
            username, password, identity_token, f"{clean(self.path)} ({clean(place)})"
        )


def parse(raw: bytes, path: str, *, legacy: bool = False) -> AuthFile:
    """Give what the file `path` with this content says; a `legacy` one is a .dockercfg.

    Raises `ConfigurationError` for JSON or types that are wrong anywhere in what is read of it.
    An entry's base64 is decoded when it is needed, as the containers libraries do it: what is
    wrong with one registry's login is no concern of another's.
    """
    if not raw.strip():
        raise _broken(path, "the file is empty (without any credentials it would hold {})")
    try:
        document = PrivateFields(strict_json.loads(raw))
        if legacy:
            return AuthFile(path, legacy, _entries(document), {}, "")
        return AuthFile(
            path,
            legacy,
            _entries(document.optional_object("auths")),
            document.text_map("credHelpers"),
            document.optional_text("credsStore") or "",
        )
    except (FieldError, strict_json.JsonError) as error:
        raise _broken(path, clean(str(error))) from None


def _entries(auths: PrivateFields | None) -> dict[str, _Entry]:
    return {} if auths is None else {key: _entry(auths.optional_object(key)) for key in auths}


def _entry(fields: PrivateFields | None) -> _Entry:
    """Give an entry. `username`, `password` and `email`, which may stand in one, are not read."""
    if fields is None:
        return _Entry("", "")
    return _Entry(fields.optional_text("auth") or "", fields.optional_text("identitytoken") or "")


def _decode(auth: str) -> tuple[str, str, str]:
    """Give user, colon and password; no exception of this quotes what it is about."""
    auth = auth.replace("\r", "").replace("\n", "")
    if _BASE64.fullmatch(auth) is None:
        raise ValueError("not base64")
    username, colon, password = a2b_base64(auth).partition(b":")
    if not colon:
        return "", "", ""
    try:
        # No reader of the file takes NULs at its ends for a part of the password.
        return username.decode(), colon.decode(), password.strip(b"\0").decode()
    except UnicodeDecodeError:
        raise ValueError("user or password is not UTF-8") from None


def _namespaces(name: str) -> list[str]:
    """Give a repository's name and those of the namespaces above it, down to the registry."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _normal(host: str) -> str:
    return "index.docker.io" if host in _HUB_HOSTS else host


def _hub_names(registry: str) -> tuple[str, ...]:
    """Give the names under which a helper may know a registry."""
    return (registry, _HUB) if registry in _HUB_HOSTS else (registry,)


def _broken(path: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"the credentials in {clean(path)}: {reason}", file=path)
