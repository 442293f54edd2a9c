"""The configuration of this host: the files that `config` parses, read from where they are.

`config.search_paths` decides where the files are, from what `environment.host` returns; a file is
read when it is first needed. Every method raises `ConfigurationError` for a file that exists but
cannot be used, with its path and the position in it, and `mounts.WouldWaitError` where reading may
hang; in the event loop, they are called by `blocking_calls.settle`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.config import search_paths
from imgproxy.errors import ConfigurationError, DeniedError, Failure, clean, shortage
from imgproxy.host import environment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imgproxy.config.auth_file import AuthFile
    from imgproxy.config.certs import Certificates
    from imgproxy.config.policy import Policy
    from imgproxy.config.registries_conf import Registries
    from imgproxy.config.registries_d import Section
    from imgproxy.config.short_names import ShortNames
    from imgproxy.host.diagnostics import Diagnostics


class Overrides(NamedTuple):
    """What options replace the files of the system with: the content of each, with its path.

    Content that could not be read yet is None, and is read from the path when it is needed.
    `cert_dir` is a directory that is used for every registry, `registries_d` one with its files.
    `requires_signatures`: see `Policy`.
    """

    policy: tuple[bytes | None, str] | None = None
    registries: tuple[bytes | None, str] | None = None
    auth: tuple[bytes | None, str] | None = None
    cert_dir: str | None = None
    registries_d: str | None = None
    requires_signatures: bool = False


class Configuration:
    """The configuration of this host, where options do not replace it.

    `diagnostics` is for warnings.
    """

    def __init__(self, chosen: Overrides, diagnostics: Diagnostics) -> None:
        self._chosen = chosen
        self._diagnostics = diagnostics
        self._host = environment.host()
        self._warned: set[str] = set()

    def warn(self, message: str) -> None:
        """Report, once, what has no effect in a file that is used all the same."""
        if message not in self._warned:
            self._warned.add(message)
            self._diagnostics.failure(f"warning: {message}")

    def policy(self) -> Policy:
        """Return the policy: containers-policy.json(5).

        Keys that match no image are reported once. Raises `DeniedError` where there is no policy,
        because without one no image is accepted.
        """
        from imgproxy.config import policy

        content, path = self._chosen.policy or self._own_policy()
        parsed = policy.parse(self._read("the policy", path) if content is None else content, path)
        for warning in parsed.warnings:
            self.warn(warning)
        return parsed._replace(requires_signatures=self._chosen.requires_signatures)

    def _own_policy(self) -> tuple[bytes, str]:
        found = search_paths.policy(self._host)
        if found.path is None:
            raise DeniedError(
                "there is no policy.json, so no image may be used (searched:"
                f" {', '.join(map(clean, found.searched))}); name one with --policy, or accept"
                " any image with --insecure-policy"
            )
        return self._read("the policy", found.path), found.path

    @cached_property
    def registries(self) -> Registries:
        """The locations and mirrors of registries: containers-registries.conf(5).

        Settings that have no effect are reported once.
        """
        from imgproxy.config import registries_conf

        content, option = self._chosen.registries or (None, None)
        files = [
            registries_conf.parse(
                content
                if content is not None and path == option
                else self._read("registries", path),
                path,
                version_1=version_1,
            )
            for path, version_1 in search_paths.registries(self._host, option)
        ]
        merged = registries_conf.merge(files)
        for warning in merged.warnings:
            self.warn(warning)
        return merged

    @cached_property
    def short_names(self) -> ShortNames:
        """What names without a registry stand for, with the aliases that other tools recorded."""
        from imgproxy.config import registries_conf, short_names

        path = search_paths.aliases(self._host)
        if path is None:
            return self.registries.short_names
        recorded = registries_conf.parse(self._read("aliases", path), path)
        return short_names.with_aliases(self.registries.short_names, recorded.short_names)

    def signatures(self, scopes: Iterable[str]) -> Section:
        """Return where the signatures of an image are, by its scopes: containers-registries.d(5).

        Raises `DeniedError` where there are such files, but not PyYAML to read them.
        """
        from imgproxy.config import registries_d

        return registries_d.find(
            self._signature_sections, scopes, search_paths.lookaside(self._host)
        )

    @cached_property
    def _signature_sections(self) -> dict[str, Section]:
        from imgproxy.config import registries_d

        try:
            files = [
                registries_d.parse(self._read("registries.d", path), path)
                for path in search_paths.registries_d(self._host, self._chosen.registries_d)
            ]
        except ImportError as error:
            raise shortage("reading registries.d", error) or DeniedError(
                "PyYAML is needed to read registries.d, and so to find signatures:"
                " pip install 'oci-imgproxy[signatures]'"
            ) from None
        for warning in (each for file in files for each in file.warnings):
            self.warn(warning)
        return registries_d.merge(files)

    def auth_files(self) -> list[AuthFile]:
        """Return the files that may have credentials, in order: containers-auth.json(5)."""
        from imgproxy.config import auth_file

        if self._chosen.auth is not None:
            content, path = self._chosen.auth
            content = self._read("credentials", path) if content is None else content
            return [auth_file.parse(content, path)]
        found = []
        for file in search_paths.auth_files(self._host):
            try:
                content = environment.read_file(file.path)
            except (FileNotFoundError, NotADirectoryError) as error:
                if file.must_exist:
                    raise _unreadable("credentials", file.path, error) from None
                continue
            except (OSError, ValueError) as error:
                raise _unreadable("credentials", file.path, error) from None
            found.append(auth_file.parse(content, file.path, legacy=file.legacy))
        return found

    def auth_paths(self) -> list[str]:
        """Return the paths of the files that may have credentials, whether they exist or not."""
        if self._chosen.auth is not None:
            return [self._chosen.auth[1]]
        return [file.path for file in search_paths.auth_files(self._host)]

    def certificates(self, registry: str) -> Certificates:
        """Return the certificates for `host[:port]`: containers-certs.d(5)."""
        from imgproxy.config import certs

        directory = self._chosen.cert_dir or search_paths.certificates(self._host, registry)
        if directory is None:
            return certs.Certificates()
        return certs.choose(directory, list(self._host.names(directory)))

    def _read(self, what: str, path: str) -> bytes:
        try:
            return environment.read_file(path)
        except (OSError, ValueError) as error:
            raise _unreadable(what, path, error) from None


def read_at_once(what: str, path: str) -> bytes:
    """Return the content of a file with `what`, however long its file system takes.

    Raises `ConfigurationError`.
    """
    try:
        return environment.read_at_once(path)
    except (OSError, ValueError) as error:
        raise _unreadable(what, path, error) from None


def _unreadable(what: str, path: str, error: Exception) -> Failure:
    reason = error.strerror if isinstance(error, OSError) else error
    doing = f"reading {what} in {clean(path)}"
    return shortage(doing, error) or ConfigurationError(f"{doing}: {reason}", file=path)
