"""How `imgproxy registry` is protected: the options, and what is made of the files they name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy.cli.options import Options, Parser
from imgproxy.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from socket import socket

    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.net.streams import ByteStream


class ProtectionOptions(Options):
    """The options of the protection."""

    tls_cert: str | None
    tls_key: str | None
    client_ca: str | None


def add_options(parser: Parser) -> None:
    """Add the options of the protection."""
    add = parser.add_argument
    add(
        "--tls-cert",
        metavar="FILE",
        help="speak TLS on TCP listeners, with this certificate and those between it and its"
        " authority; read anew when it changes",
    )
    add("--tls-key", metavar="FILE", help="the key of that certificate")
    add(
        "--client-ca",
        metavar="FILE",
        help="demand a certificate of TLS clients, from an authority in this file",
    )


def check(options: ProtectionOptions) -> None:
    """Raise `UsageError` for options that make no sense together."""
    if (options.tls_cert is None) != (options.tls_key is None):
        raise UsageError("--tls-cert and --tls-key are given together or not at all")
    if options.client_ca is not None and options.tls_cert is None:
        raise UsageError("--client-ca is for TLS: give --tls-cert and --tls-key as well")


def new_tcp_stream(
    options: ProtectionOptions, diagnostics: Diagnostics
) -> Callable[[socket], Awaitable[ByteStream]] | None:
    """Return what makes the stream of a connection, None without TLS.

    Certificates are looked at for each connection. Raises `UsageError` for unusable ones.
    """
    if options.tls_cert is None or options.tls_key is None:
        return None
    from imgproxy.host.file_changes import Reread
    from imgproxy.net.accepted_tls import AcceptedTls
    from imgproxy.net.tls import make_server_context

    files = [options.tls_cert, options.tls_key, options.client_ca]
    try:
        contexts = Reread(
            partial(make_server_context, options.tls_cert, options.tls_key, options.client_ca),
            [each for each in files if each is not None],
            lambda why: diagnostics.failure(f"{why}; TLS goes on with what was read before"),
        )
    except ConfigurationError as error:
        raise UsageError(error.message) from None

    async def stream(sock: socket) -> ByteStream:
        await contexts.look()
        return AcceptedTls(sock, contexts.value)

    return stream
