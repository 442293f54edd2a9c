"""Credentials, and the programs that are asked for them: docker-credential-helpers.

No secret is ever in a message: `repr` and `str` say where credentials come from, and what a helper
says is quoted only where it can't be an answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from imgproxy.errors import ConfigurationError, UsageError, clean
from imgproxy.parsing import strict_json
from imgproxy.parsing.typed_fields import FieldError, PrivateFields
from imgproxy.specs.http.credentials import Credentials

# What a helper may say. Tokens stand in header fields, for which this is the limit as well.
MAX_HELPER_OUTPUT = 64 * 1024

# A helper is a program in $PATH; its name must be no path, and no option to whatever runs it.
_HELPER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")

# docker-credential-helpers, credentials/error.go and README: the words by which a helper says that
# it knows nothing, and the user name by which it says that the secret is an identity token.
_NOT_FOUND = "credentials not found in native keychain"
_TOKEN_USER = "<token>"  # noqa: S105  (no secret)

# What may be a token in a helper's complaint: long, unbroken, and with a digit in it.
_TOKEN = re.compile(r"(?=[A-Za-z+/_=~-]*[0-9])[A-Za-z0-9+/_=~-]{20,}")


class Helper(NamedTuple):
    """A program that is to be asked for credentials, docker-credential-NAME.

    `servers` are the names under which it may have them, to be asked for in order until one has.
    `source` says which file and key named the helper. `promised` is false where nothing says that
    it has any for this registry: a store for all registries, and no login recorded in the file.
    """

    name: str
    servers: tuple[str, ...]
    source: str
    promised: bool

    @property
    def program(self) -> str:
        """The program's name, to be found in $PATH."""
        return f"docker-credential-{self.name}"


def any_credentials(
    username: str, password: str, identity_token: str, source: str
) -> Credentials | None:
    """Give credentials if there are any."""
    if not (username or password or identity_token):
        return None
    return Credentials(username, password, identity_token, source)


def make_helper(
    name: str, servers: tuple[str, ...], source: str, *, promised: bool = True
) -> Helper:
    """Give the helper that `source`, a file and a key in it, calls `name`.

    Raises `ConfigurationError` for a name that isn't the end of a program's.
    """
    if _HELPER_NAME.fullmatch(name) is None:
        raise ConfigurationError(
            f'{source}: "{clean(name)}" is not the name of a credential helper, which is what'
            " follows docker-credential- in the name of a program"
        )
    return Helper(name, servers, source, promised)


def question(helper: Helper, server: str) -> tuple[list[str], bytes]:
    """Give the command that asks a helper, to be run without a shell, and its standard input."""
    return [helper.program, "get"], server.encode()


def answer(helper: Helper, server: str, status: int, output: bytes) -> Credentials | None:
    """Give the credentials that a helper has for a server, None where it has none.

    `status` is its exit status, or the negative of the signal that ended it; `output` is what it
    wrote to standard output, of which more than `MAX_HELPER_OUTPUT` bytes need not be read.

    Raises `ConfigurationError` for whatever is not an answer.
    """
    if len(output) > MAX_HELPER_OUTPUT:
        raise unusable(helper, f"answered more than {MAX_HELPER_OUTPUT} bytes for {clean(server)}")
    if status != 0:
        words = output.decode("utf-8", "replace").strip()
        if words == _NOT_FOUND:
            return None
        how = f"status {status}" if status > 0 else f"signal {-status}"
        raise unusable(helper, f"failed for {clean(server)} with {how}{_quoted(words)}")
    try:
        fields = PrivateFields(strict_json.loads(output))
        username, secret = fields.text("Username"), fields.text("Secret")
    except (FieldError, strict_json.JsonError) as error:
        raise unusable(
            helper, f"gave no usable answer for {clean(server)}: {clean(str(error))}"
        ) from None
    source = f"{helper.program} for {clean(server)} ({helper.source})"
    if username == _TOKEN_USER:
        return any_credentials("", "", secret, source)
    return any_credentials(username, secret, "", source)


def unusable(helper: Helper, reason: str) -> ConfigurationError:
    """Give the error for a helper that failed, in words that follow its name."""
    return ConfigurationError(f"{helper.source}: {helper.program} {reason}")


def _quoted(words: str) -> str:
    """Give a helper's complaint as the end of a message; an answer in JSON is no complaint."""
    if not words or '"' in words or "{" in words:
        return ""
    return f": {clean(_TOKEN.sub('…', words))}"


def parse_creds(text: str) -> Credentials:
    """Give the credentials that `--creds USER[:PASSWORD]` spells.

    Raises `UsageError` itself, since whatever a command-line parser makes of other exceptions
    shows the argument.
    """
    username, _, password = text.partition(":")
    if not username:
        raise UsageError("--creds: expected USER[:PASSWORD], and the user is missing")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("--creds: user or password is not UTF-8") from None
    return Credentials(username, password, "", "--creds")
