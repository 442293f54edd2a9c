"""Files of credentials: containers-auth.json(5), Docker's config.json, its older .dockercfg.

This module interprets one file; the caller decides which files there are. A file that exists but
is broken is an error, never accidental anonymous access. Error messages contain the path of a field
and the kind of its value, but never the value.

Docker writes the same file and reads more of it than the containers libraries do: `credsStore`, a
helper for all registries, an entry with an identity token alone, `registrytoken`, and a
`credHelpers` entry with an empty name, which excludes a registry from the store. Secrets of
Kubernetes have `username` and `password` in place of `auth`, and keys with wildcards. All of these
are supported here as well.

Keys are compared as `registry_name.place` has them. One with a wildcard counts where no other key
applies; as for the kubelet, its labels are compared one by one, and its port and path as they are.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.config.credential_helpers import Helper, make_credentials, make_helper
from imgproxy.errors import ConfigurationError, clean
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, PrivateFields
from imgproxy.specs.oci import registry_name
from imgproxy.specs.oci import token as tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from imgproxy.specs.http.credentials import Credentials

# The name under which Docker keeps logins to Docker Hub, in files and in helpers.
_HUB = "https://index.docker.io/v1/"

# RFC 4648 section 4, padded. Line ends are removed first, as by Go's decoder.
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


class _Fields(PrivateFields):
    __slots__ = ()
    known = frozenset(
        {"auths", "auth", "identitytoken", "registrytoken", "username", "password"}
        | {"credHelpers", "credsStore"}
    )


class _Entry(NamedTuple):
    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return "<an entry>"


class AuthFile(NamedTuple):
    """The content of a file. `path` is its name in messages; a `legacy` one has only hosts."""

    path: str
    legacy: bool
    auths: dict[str, _Entry]
    helpers: dict[str, str]
    store: str

    def __repr__(self) -> str:
        return f"<AuthFile {self.path}>"

    def find(
        self, registry: str, repository: str, *, insecure: bool = False
    ) -> Credentials | Helper | None:
        """Return the credentials or the helper for a repository, None to consult another file.

        A registry's own helper comes first. Then the entry that applies to the repository, if it
        has a value; Docker leaves empty ones where it has put the login into the store. Then the
        store. `insecure`: plain http may be used, so that `host` and `host:443` are not the same.

        Raises `ConfigurationError` for an entry or a helper's name that is needed and malformed.
        """
        form = partial(registry_name.place, tls=not insecure)
        servers = _servers(registry, form)
        server = _first(self.helpers, servers, form) or _like(self.helpers, servers, form)
        if server is not None and self.helpers[server]:
            asked = servers if "*" in server else (server, *servers)
            return self._helper(f"credHelpers.{server}", self.helpers[server], asked)
        key = self._key(registry, repository, form)
        credentials = None if key is None else self._credentials(key)
        if credentials is not None or server is not None or not self.store:
            return credentials
        is_required = key is not None
        return self._helper("credsStore", self.store, servers[::-1], is_required=is_required)

    def _helper(
        self, field_path: str, name: str, servers: tuple[str, ...], *, is_required: bool = True
    ) -> Helper:
        source = f"{clean(field_path)} in {clean(self.path)}"
        return make_helper(name, tuple(dict.fromkeys(servers)), source, is_required=is_required)

    def _key(self, registry: str, repository: str, form: Callable[[str], str]) -> str | None:
        """Return the longest key that applies to a repository, None where there is none.

        Only the longest counts, even if its entry is empty: an entry for a namespace replaces
        that of the registry.
        """
        names = [registry] if self.legacy else _namespaces(f"{registry}/{repository}")
        key = _first(self.auths, names, form)
        # Older versions of Docker wrote the names of registries as typed, also as URLs.
        key = key or _first(self.auths, [registry], lambda key: form(self._host(key)))
        return key or _like(self.auths, names, form, self._host)

    def _host(self, key: str) -> str:
        """Return the host of a key; without a scheme, a path belongs to a namespace."""
        rest = key.removeprefix("http://").removeprefix("https://")
        return rest.partition("/")[0] if self.legacy or rest != key else rest

    def _credentials(self, key: str) -> Credentials | None:
        """Return the credentials in an entry, None if it has none.

        An entry whose `auth` has no colon is ignored together with its token, as by all readers
        of the file.
        """
        auth, username, password, identity_token, registry_token = self.auths[key]
        field_path = key if self.legacy else f"auths.{key}"
        if auth:
            try:
                username, colon, password = _decode(auth)
            except ValueError as error:
                raise _broken(self.path, f"{clean(field_path)}.auth: {error}") from None
            if not colon:
                return None
        elif ":" in username:
            raise _broken(self.path, f"{clean(field_path)}.username: has a colon")
        if registry_token and not tokens.is_usable(registry_token):
            raise _broken(self.path, f"{clean(field_path)}.registrytoken: not a bearer token")
        source = f"{clean(self.path)} ({clean(field_path)})"
        return make_credentials(username, password, identity_token, source, registry_token)


def parse(raw: bytes, path: str, *, legacy: bool = False) -> AuthFile:
    """Parse the file `path` with this content; a `legacy` one is a .dockercfg.

    Raises `ConfigurationError` for malformed JSON and for a wrong type of any supported field. An
    entry's base64 is decoded when it is needed, as by the containers libraries: a mistake in one
    registry's login does not affect other registries.
    """
    if not raw.strip():
        raise _broken(path, "the file is empty (without any credentials it would hold {})")
    try:
        document = _Fields(strict_json.loads(raw, _Fields.shown_key))
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


def _entries(auths: _Fields | None) -> dict[str, _Entry]:
    return {} if auths is None else {key: _entry(auths.optional_object(key)) for key in auths}


def _entry(fields: _Fields | None) -> _Entry:
    """Parse an entry; of `username` and `password`, `auth` takes the place."""
    if fields is None:
        return _Entry()
    auth = fields.optional_text("auth") or ""
    return _Entry(
        auth,
        "" if auth else fields.optional_text("username") or "",
        "" if auth else fields.optional_text("password") or "",
        fields.optional_text("identitytoken") or "",
        fields.optional_text("registrytoken") or "",
    )


def _decode(auth: str) -> tuple[str, str, str]:
    """Return user, colon and password. No message of its exceptions quotes the value."""
    auth = auth.replace("\r", "").replace("\n", "")
    if _BASE64.fullmatch(auth) is None:
        raise ValueError("not base64")
    username, colon, password = a2b_base64(auth).partition(b":")
    if not colon:
        return "", "", ""
    try:
        # As in all readers of the file, NULs at its ends are not part of the password.
        return username.decode(), colon.decode(), password.strip(b"\0").decode()
    except UnicodeDecodeError:
        raise ValueError("user or password is not UTF-8") from None


def _first(keys: Collection[str], names: Iterable[str], form: Callable[[str], str]) -> str | None:
    """Return the key for the first name that has one: written like it, or of the same form."""
    for name in names:
        same = [key for key in keys if form(key) == form(name)]
        if same:
            return name if name in same else same[0]
    return None


def _like(
    keys: Collection[str],
    names: Iterable[str],
    form: Callable[[str], str],
    meant: Callable[[str], str] = str,
) -> str | None:
    """Return the key with wildcards for the first name that has one: the most specific of them.

    `meant` returns what a key stands for.
    """
    for name in names:
        fitting = [key for key in keys if "*" in key and _fits(meant(key), name, form)]
        if fitting:
            return max(fitting, key=lambda key: len(key.replace("*", "")))
    return None


def _fits(key: str, name: str, form: Callable[[str], str]) -> bool:
    """Return whether a key with wildcards stands for a name, in any spelling of its place."""
    pattern, _, path = key.partition("/")
    registry, _, repository = name.partition("/")
    place = form(registry)
    return path == repository and any(
        _has_labels(each, pattern.lower())
        for each in (registry, place, f"{place}:443")
        if form(each) == place
    )


def _has_labels(registry: str, pattern: str) -> bool:
    """Return whether each label fits the one in its place: a wildcard never crosses a dot."""
    host, _, port = registry.partition(":")
    host_pattern, _, port_pattern = pattern.partition(":")
    labels, patterns = host.split("."), host_pattern.split(".")
    return (
        port == port_pattern
        and len(labels) == len(patterns)
        and all(map(fnmatchcase, labels, patterns))
    )


def _namespaces(name: str) -> list[str]:
    """Return a repository's name and those of the namespaces above it, up to the registry."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _servers(registry: str, form: Callable[[str], str]) -> tuple[str, ...]:
    """Return the names under which a helper may list a registry."""
    place = form(registry)
    return tuple(dict.fromkeys((registry, _HUB if place == "docker.io" else place)))


def _broken(path: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"the credentials in {clean(path)}: {reason}", file=path)
