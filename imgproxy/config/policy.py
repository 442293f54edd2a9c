"""policy.json, which decides what images may be used: containers-policy.json(5).

The file is parsed strictly and as a whole: an unknown key or a wrong type makes it unusable, never
more permissive. Only the list of the most specific scope applies, and every requirement in it must
accept the image.
"""

from __future__ import annotations

from posixpath import normpath
from typing import TYPE_CHECKING, NamedTuple

from imgproxy.errors import ConfigurationError, DeniedError, clean
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, Fields
from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.config.signature_requirements import Requirement, SignedBy, SigstoreSigned
    from imgproxy.specs.oci.reference import Reference

# Transports whose scopes are paths; the scopes of others are not checked.
_BY_PATH = frozenset({"dir", "oci", "oci-archive"})

# Transports whose only scope is the empty one. One archive may hold many images whose names are in
# the file, so containers/image accepts no other; and a scope that never matches would make the
# file look stricter than it is.
_WITHOUT_SCOPES = frozenset({"docker-archive"})


class Scope(NamedTuple):
    """The requirements of a scope; `field_path` is their path in the file.

    Requirements that need no signature are represented by their type alone.
    """

    field_path: str
    requirements: tuple[Requirement | str, ...]


class Policy(NamedTuple):
    """The content of a policy file. `source` is its name in messages.

    The scopes of `docker` are as `registry_name.place` has them. `warnings` are about those that
    match nothing. `requires_signatures`: what a scope accepts without a signature is rejected.
    """

    source: str
    default: Scope
    transports: dict[str, dict[str, Scope]]
    warnings: tuple[str, ...] = ()
    requires_signatures: bool = False


class Conditions(NamedTuple):
    """What signatures must meet for an image; `where` names file and scope in messages."""

    where: str
    requirements: tuple[SignedBy | SigstoreSigned, ...]


# The policy of `--insecure-policy`, as a file.
ACCEPT_ANYTHING = b'{"default":[{"type":"insecureAcceptAnything"}]}'


def parse(raw: bytes, source: str) -> Policy:
    """Parse the policy in `raw`, the content of the file `source`.

    Raises `ConfigurationError` with the path of the faulty field.
    """
    try:
        document = Fields(strict_json.loads(raw))
        document.refuse_unknown({"default", "transports"})
        transports = document.optional_object("transports") or Fields({})
        return Policy(
            source,
            _scope(document, "default"),
            {name: _scopes(transports.object(name), name) for name in transports},
            tuple(f"{clean(source)}: {warning}" for warning in _warnings(transports)),
        )
    except (FieldError, strict_json.JsonError) as error:
        raise ConfigurationError(f"the policy {source}: {error}", file=source) from None


def key_paths(policy: Policy) -> list[str]:
    """Return the paths of the files that a policy names: keys and certificates."""
    scopes = [policy.default, *(each for by in policy.transports.values() for each in by.values())]
    every = [each for scope in scopes for each in scope.requirements if not isinstance(each, str)]
    if not every:
        return []
    from imgproxy.config import signature_requirements

    return [path for each in every for path in signature_requirements.paths_in(each)]


def _scopes(transport: Fields, name: str) -> dict[str, Scope]:
    for scope in filter(None, transport):
        if name in _BY_PATH and not _is_absolute(scope):
            raise FieldError(f"{transport.at(scope)}: expected an absolute path, without . or ..")
        if name in _WITHOUT_SCOPES:
            raise FieldError(f'{transport.at(scope)}: {name} has no scope but the empty one, ""')
    scopes: dict[str, Scope] = {}
    for written in transport:
        key = registry_name.place(written) if name == "docker" else written
        found = _scope(transport, written)
        scopes[key] = _both(scopes[key], found) if key in scopes else found
    return scopes


def _both(one: Scope, other: Scope) -> Scope:
    """Return what two spellings of a scope require: no spelling makes the other one laxer."""
    return Scope(f"{one.field_path} and {other.field_path}", one.requirements + other.requirements)


def _warnings(transports: Fields) -> Iterator[str]:
    """Yield a warning for each key that looks like a rule, and matches no image."""
    for name in transports:
        from imgproxy.config import policy_hints

        keys = transports.object(name)
        hints = [(transports.at(name), policy_hints.for_transport(name))]
        if name == "docker":
            hints += [(keys.at(scope), policy_hints.for_scope(scope)) for scope in keys]
        yield from (f"{path}: {hint}" for path, hint in hints if hint)


def _is_absolute(path: str) -> bool:
    """Return whether a path is absolute, normalised and not the root."""
    return path[:1] == "/" and path[:2] not in ("/", "//") and normpath(path) == path


def _scope(fields: Fields, key: str) -> Scope:
    every = fields.objects(key)
    if not every:  # absent, or empty
        raise FieldError(f"{fields.at(key)}: expected a list of requirements that is not empty")
    return Scope(fields.at(key), tuple(map(_requirement, every)))


def _requirement(fields: Fields) -> Requirement | str:
    kind = fields.text("type")
    if kind in ("insecureAcceptAnything", "reject"):
        fields.refuse_unknown({"type"})
        return kind
    from imgproxy.config import signature_requirements

    return signature_requirements.parse(fields, kind)


def scopes_of(reference: Reference) -> list[str]:
    """Return the scopes of an image in a registry by its reference; see `docker_scopes`."""
    suffix = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
    return docker_scopes(reference.registry, reference.repository, suffix)


def docker_scopes(registry: str, repository: str, suffix: str) -> list[str]:
    """Return the scopes of an image in a registry, most specific first.

    The registry is as `registry_name.place` has it, and `suffix` is `:tag` or `@digest`. After the
    image itself come the repository, the namespaces above it, the registry, and `*.` wildcards for
    the domains above that, which drop the port.
    """
    registry = registry_name.place(registry)
    name = f"{registry}/{repository}"
    scopes = [f"{name}{suffix}", name]
    while "/" in name:
        name = name.rpartition("/")[0]
        scopes.append(name)
    domain = registry_name.split(registry)[0]
    while "." in domain:
        domain = domain.partition(".")[2]
        scopes.append(f"*.{domain}")
    return scopes


def path_scopes(path: str) -> list[str]:
    """Return the scopes of a local image: its absolute path, and the directories above it."""
    scopes = [path]
    while (path := path.rpartition("/")[0]) != "":
        scopes.append(path)
    return scopes


def evaluate(policy: Policy, transport: str, scopes: list[str], image: str) -> Conditions:
    """Return the conditions on which a policy accepts an image, often none.

    Raises `DeniedError`, naming file, place and requirement, where no signature could meet them.
    """
    by_name = policy.transports.get(transport, {})
    scope = next((by_name[name] for name in [*scopes, ""] if name in by_name), policy.default)
    where = f"the policy {policy.source} ({clean(scope.field_path)})"
    # Whoever is refused looks for the key to add, and the transport may have been detected.
    since = f"since transports.{clean(transport)} has no scope for it"
    by_default = scope is policy.default
    if "reject" in scope.requirements:
        raise DeniedError(f"{image} is rejected by {where}" + (f", {since}" if by_default else ""))
    where = f"{since}, {where}" if by_default else where
    others = [each for each in scope.requirements if not isinstance(each, str)]
    if policy.requires_signatures and not others:
        raise DeniedError(f"{image} is rejected by --require-signed: {where} wants no signature")
    return Conditions(where, _signed(others, f"{image} is rejected: {where}") if others else ())


def _signed(every: list[Requirement], message: str) -> tuple[SignedBy | SigstoreSigned, ...]:
    """Return the requirements, which signatures can satisfy. Raises `DeniedError` for others."""
    from imgproxy.config.signature_requirements import UnsupportedRequirement

    signed = []
    for requirement in every:
        if isinstance(requirement, UnsupportedRequirement):
            raise DeniedError(f"{message} requires {requirement.kind}: {requirement.reason}")
        signed.append(requirement)
    return tuple(signed)
