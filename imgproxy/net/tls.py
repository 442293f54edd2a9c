"""TLS contexts with the certificates of containers-certs.d(5)."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

from imgproxy.errors import ConfigurationError, Failure, clean, shortage
from imgproxy.host import environment

if TYPE_CHECKING:
    from imgproxy.config.certs import Certificates


def files(certificates: Certificates) -> list[str]:
    """Return the paths of the files that `make_context` reads."""
    variables = environment.environment()
    defaults = (variables.get("SSL_CERT_FILE"), variables.get("SSL_CERT_DIR"))
    pairs = [path for pair in certificates.clients for path in pair]
    return [*certificates.authorities, *pairs, *filter(None, defaults)]


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
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except PermissionError as error:  # which does not name the file
            if os.access(certificate, os.R_OK):
                raise _unusable(key, error, "key") from None
            raise _unusable(certificate, error) from None
        except (OSError, ValueError) as error:
            raise _unusable(certificate, error) from None
    return context


def _no_password() -> str:
    """Return no password, so that a key that has one fails; OpenSSL would ask on the terminal."""
    return ""


def _unusable(path: str, error: Exception, kind: str = "certificate") -> Failure:
    what = f"the {kind} {clean(path)}"
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return shortage(what, error) or ConfigurationError(f"{what}: {clean(str(reason))}", file=path)
