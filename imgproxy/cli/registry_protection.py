"""How `imgproxy registry` is protected: the options, and what is made of the files they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from imgproxy.cli.options import Options
from imgproxy.errors import ConfigurationError, UsageError, shortage
from imgproxy.host.file_changes import Reread
from imgproxy.server import listeners
from imgproxy.server.access import is_loopback, parse_host

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from socket import socket
    from ssl import SSLContext

    from imgproxy.cli.parser import Parser
    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.net.streams import ByteStream
    from imgproxy.server.handler import Handler

T = TypeVar("T")


class ProtectionOptions(Options):
    """The options of the protection."""

    tls_cert: str | None
    tls_key: str | None
    client_ca: str | None
    htpasswd: str | None


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
    add(
        "--htpasswd",
        metavar="FILE",
        help="demand a user and a password, whose bcrypt hash is in this file; read anew when it"
        " changes",
    )


def check(options: ProtectionOptions) -> None:
    """Raise `UsageError` for options that make no sense together."""
    if (options.tls_cert is None) != (options.tls_key is None):
        raise UsageError("--tls-cert and --tls-key are given together or not at all")
    if options.client_ca is not None and options.tls_cert is None:
        raise UsageError("--client-ca is for TLS: give --tls-cert and --tls-key as well")


def check_sockets(options: ProtectionOptions, sockets: Iterable[socket]) -> None:
    """Raise `UsageError` where passwords would come in the clear from other hosts."""
    if options.htpasswd is None or options.tls_cert is not None or not options.allow_remote:
        return
    for each in sockets:
        name = each.getsockname()
        if isinstance(name, tuple) and not is_loopback(parse_host(name[0].partition("%")[0])):
            raise UsageError(
                f"--htpasswd: {listeners.described(each)} is open to other hosts, and passwords"
                " would cross the network in the clear; give --tls-cert and --tls-key, or listen on"
                " a loopback address"
            )


def new_passwords(
    options: ProtectionOptions, diagnostics: Diagnostics
) -> Callable[[Handler], Handler]:
    """Return what puts the demand for a password before a front-end, if there is one.

    Raises `UsageError`.
    """
    path = options.htpasswd
    if path is None:
        return lambda handler: handler
    try:
        import bcrypt
    except ImportError as error:
        raise shortage("importing bcrypt", error) or UsageError(
            "--htpasswd needs bcrypt: pip install 'oci-imgproxy[registry]'"
        ) from None
    from imgproxy.frontends.registry_passwords import WithPasswords
    from imgproxy.host.configuration import read_at_once
    from imgproxy.specs.http import htpasswd

    users = _reread(
        lambda: htpasswd.parse(read_at_once("passwords", path), path), [path], diagnostics.failure
    )
    return lambda handler: WithPasswords(handler, users.current, bcrypt.checkpw)


def new_tcp_stream(
    options: ProtectionOptions, diagnostics: Diagnostics
) -> Callable[[socket], Awaitable[ByteStream]] | None:
    """Return what makes the stream of a connection, None without TLS.

    Certificates are looked at for each connection, and the authorities of clients for each request:
    a connection that another authority has let in ends. Raises `UsageError` for unusable ones.
    """
    if options.tls_cert is None or options.tls_key is None:
        return None
    from imgproxy.host.configuration import read_at_once
    from imgproxy.net.accepted_tls import AcceptedTls
    from imgproxy.net.tls import make_server_context

    pair, client_ca = (options.tls_cert, options.tls_key), options.client_ca

    def load() -> tuple[SSLContext, bytes]:
        context = make_server_context(*pair, client_ca)
        return context, read_at_once("authorities", client_ca) if client_ca else b""

    contexts = _reread(
        load,
        [*pair, client_ca] if client_ca else [*pair],
        lambda why: diagnostics.failure(f"{why}; TLS goes on with what was read before"),
    )

    async def stream(sock: socket) -> ByteStream:
        await contexts.look()
        context, authorities = contexts.value
        if client_ca is None:
            return AcceptedTls(sock, context)

        async def still_holds() -> bool:
            await contexts.look()
            return contexts.value[1] == authorities

        return AcceptedTls(sock, context, still_holds)

    return stream


def _reread(load: Callable[[], T], paths: list[str], report: Callable[[str], None]) -> Reread[T]:
    """Return what is made of files that options name. Raises `UsageError`."""
    try:
        return Reread(load, paths, report)
    except ConfigurationError as error:
        raise UsageError(error.message) from None
