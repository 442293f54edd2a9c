"""Credential helpers: the protocol of docker-credential-helpers.

No secret is ever in a message: `repr` and `str` show the origin of credentials, and the output of a
helper is quoted only where it cannot hold credentials.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from imgproxy.errors import ConfigurationError, UsageError, clean
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, PrivateFields
from imgproxy.specs.http.credentials import Credentials
from imgproxy.specs.http.secrets import TOKEN

# In bytes, of a helper's output. Tokens are sent in header fields, which have the same limit.
MAX_HELPER_OUTPUT = 64 * 1024

# A helper is a program in $PATH; its name must be neither a path nor an option.
_HELPER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")

# docker-credential-helpers, credentials/error.go and README: the output of a helper that has no
# credentials, and the user name that marks the secret as an identity token.
_NOT_FOUND = "credentials not found in native keychain"
_TOKEN_USER = "<token>"  # noqa: S105  (no secret)


class _Reply(PrivateFields):
    __slots__ = ()
    known = frozenset({"ServerURL", "Username", "Secret"})


class Helper(NamedTuple):
    """A credential helper, the program docker-credential-NAME.

    `servers` are the names under which it may have the credentials, to be tried in order. `source`
    is the file and the key that configure the helper. `is_required` is false where the program
    need not be installed: it is a store for all registries, and the file records no login to this
    one.
    """

    name: str
    servers: tuple[str, ...]
    source: str
    is_required: bool

    @property
    def program(self) -> str:
        """The program's name, to be looked up in $PATH."""
        return f"docker-credential-{self.name}"


def make_credentials(
    username: str, password: str, identity_token: str, source: str, registry_token: str = ""
) -> Credentials | None:
    """Return credentials, None if all parts are empty."""
    if not (username or password or identity_token or registry_token):
        return None
    return Credentials(username, password, identity_token, source, registry_token)


def make_helper(
    name: str, servers: tuple[str, ...], source: str, *, is_required: bool = True
) -> Helper:
    """Return the helper called `name` by `source`, a file and a key in it.

    Raises `ConfigurationError` for a name that cannot be the end of a program's name.
    """
    if _HELPER_NAME.fullmatch(name) is None:
        raise ConfigurationError(
            f"{source}: the value is not the name of a credential helper, which is what"
            " follows docker-credential- in the name of a program"
        )
    return Helper(name, servers, source, is_required)


def make_request(helper: Helper, server: str) -> tuple[list[str], bytes]:
    """Return the command that queries a helper, to be run without a shell, and its input."""
    return [helper.program, "get"], server.encode()


def parse_reply(helper: Helper, server: str, status: int, output: bytes) -> Credentials | None:
    """Return the credentials that a helper has for a server, None where it has none.

    `status` is its exit status, or the negative of the signal that ended it; `output` is its
    standard output, of which at most `MAX_HELPER_OUTPUT` + 1 bytes are needed.

    Raises `ConfigurationError` for a helper that failed or has malformed output.
    """
    if len(output) > MAX_HELPER_OUTPUT:
        raise helper_error(
            helper, f"answered more than {MAX_HELPER_OUTPUT} bytes for {clean(server)}"
        )
    if status != 0:
        message = output.decode("utf-8", "replace").strip()
        if message == _NOT_FOUND:
            return None
        how = f"status {status}" if status > 0 else f"signal {-status}"
        raise helper_error(helper, f"failed for {clean(server)} with {how}{_quoted(message)}")
    try:
        fields = _Reply(strict_json.loads(output, _Reply.shown_key))
        username, secret = fields.text("Username"), fields.text("Secret")
    except (FieldError, strict_json.JsonError) as error:
        raise helper_error(
            helper, f"gave no usable answer for {clean(server)}: {clean(str(error))}"
        ) from None
    source = f"{helper.program} for {clean(server)} ({helper.source})"
    if username == _TOKEN_USER:
        return make_credentials("", "", secret, source)
    return make_credentials(username, secret, "", source)


def helper_error(helper: Helper, reason: str) -> ConfigurationError:
    """Return the error for a helper that failed; `reason` is a predicate that follows its name."""
    return ConfigurationError(f"{helper.source}: {helper.program} {reason}")


def _quoted(message: str) -> str:
    """Return a helper's error message as the end of ours, empty if it may be credentials."""
    if not message or '"' in message or "{" in message:
        return ""
    return f": {clean(TOKEN.sub('…', message))}"


def parse_creds(text: str) -> Credentials:
    """Parse the value of `--creds USER[:PASSWORD]`.

    Raises `UsageError`, since a command-line parser shows the argument in its messages for other
    exceptions.
    """
    username, _, password = text.partition(":")
    if not username:
        raise UsageError("--creds: expected USER[:PASSWORD], and the user is missing")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("--creds: user or password is not UTF-8") from None
    return Credentials(username, password, "", "--creds")
