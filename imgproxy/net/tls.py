"""TLS contexts: of a client, by containers-certs.d(5), and of a server; why one is refused."""

from __future__ import annotations

import os
import ssl
import time
from typing import TYPE_CHECKING, Any

from imgproxy.errors import ConfigurationError, Failure, clean, shortage
from imgproxy.host import environment

if TYPE_CHECKING:
    from imgproxy.config.certs import Certificates

    # What was made with `make_context`, by its arguments.
    Contexts = dict[tuple[Certificates, bool], ssl.SSLContext]

# OpenSSL's numbers of the reasons to refuse a certificate: x509_vfy.h. Of the first, an authority
# is missing that an administrator can add.
NO_AUTHORITY = frozenset({2, 18, 19, 20, 21, 27})
_NOT_YET_VALID, _EXPIRED = 9, 10
_ANOTHER_NAME = frozenset({62, 64})
EXPLICABLE = _ANOTHER_NAME | {_NOT_YET_VALID, _EXPIRED}

# X509_V_FLAG_NO_CHECK_TIME
_ANY_TIME = 0x200000

_MAX_NAMES = 8


def files(certificates: Certificates) -> list[str]:
    """Return the paths of the files that `make_context` reads."""
    variables = environment.environment()
    defaults = (variables.get("SSL_CERT_FILE"), variables.get("SSL_CERT_DIR"))
    return [*certificates.paths, *filter(None, defaults)]


def context(contexts: Contexts, certificates: Certificates, *, verify: bool) -> ssl.SSLContext:
    """Return what `make_context` does, made once for all servers of the same certificates.

    To read the system's authorities takes as long as a round trip. A context without any is not
    kept: OpenSSL does not say whether their file could not be opened just now. Raises
    `ConfigurationError`.
    """
    key = certificates, verify
    made = contexts.get(key) or make_context(certificates, verify=verify)
    if made.cert_store_stats()["x509"] or not verify:
        contexts[key] = made
    return made


def make_context(certificates: Certificates, *, verify: bool) -> ssl.SSLContext:
    """Return a context for TLS 1.2 at least, with the system's authorities and these certificates.

    `verify` false accepts any certificate of a server. Raises `ConfigurationError` for a file that
    cannot be read or is not a certificate or key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if verify:
        context.load_default_certs()
        # An administrator who installs an intermediate authority, or the certificate of the server
        # itself, trusts that, whoever has signed it. The other clients of certs.d agree.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for path in certificates.authorities:
        try:
            context.load_verify_locations(path)
        except FileNotFoundError:
            pass  # a dangling link
        except OSError as error:
            raise _unusable(path, error) from None
    # Apache asks for a certificate after the request where only some paths need one.
    context.post_handshake_auth = bool(certificates.clients)
    for certificate, key in certificates.clients:
        _load_pair(context, certificate, key)
    return context


def make_server_context(certificate: str, key: str, client_ca: str | None) -> ssl.SSLContext:
    """Return a context for TLS 1.2 at least, that shows a certificate with what is signed by it.

    With `client_ca`, clients must show a certificate from an authority in that file. Raises
    `ConfigurationError` for a file that cannot be read or is not a certificate or key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load_pair(context, certificate, key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ValueError) as error:
            raise _unusable(client_ca, error) from None
    return context


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Load a certificate and its key. Raises `ConfigurationError`."""
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (PermissionError, FileNotFoundError) as error:  # which do not name the file
        if os.access(certificate, os.R_OK):
            raise _unusable(key, error, "key") from None
        raise _unusable(certificate, error) from None
    except (OSError, ValueError) as error:
        raise _unusable(certificate, error) from None


def _no_password() -> str:
    """Return no password, so that a key that has one fails; OpenSSL would ask on the terminal."""
    return ""


def _unusable(path: str, error: Exception, kind: str = "certificate") -> Failure:
    what = f"the {kind} {clean(path)}"
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return shortage(what, error) or ConfigurationError(f"{what}: {clean(str(reason))}", file=path)


def make_lenient_context(certificates: Certificates) -> ssl.SSLContext:
    """Return a context that accepts any name and any time of a certificate from an authority.

    It is for looking at the certificate alone: no certificate of a client is shown.
    """
    context = make_context(certificates._replace(clients=()), verify=True)
    context.check_hostname = False
    context.verify_flags |= _ANY_TIME
    return context


def explanation(code: int, certificate: dict[str, Any], now: float) -> str:
    """Return why a certificate is refused, by its fields, or nothing if they do not show that.

    `code` is one of `EXPLICABLE`, `now` the time in seconds since the epoch.
    """
    if code in _ANOTHER_NAME:
        names = [clean(str(value)) for _, value in certificate.get("subjectAltName", ())]
        more = [f"{len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
        return f" It is for {', '.join([*names[:_MAX_NAMES], *more]) or 'no name'}."
    begin, end = (ssl.cert_time_to_seconds(certificate[each]) for each in ("notBefore", "notAfter"))
    if begin <= now <= end:
        return ": that of an authority, for the server's own is valid"
    valid = (
        f"was valid until {_shown(end)}" if code == _EXPIRED else f"is valid from {_shown(begin)}"
    )
    return f": it {valid}, and the clock of this host says {_shown(now)}"


def _shown(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
