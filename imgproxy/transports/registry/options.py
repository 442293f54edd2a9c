"""How the world may be reached, as options say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgproxy.config.sideload_pattern import Pattern
    from imgproxy.net.preconnect import Preconnection
    from imgproxy.specs.http.credentials import Credentials


class Access(NamedTuple):
    """How registries are reached, as options say it.

    `tls_verify` is None where they say nothing and registries.conf decides; `retries` are per
    megabyte of progress; `stall_timeout` is in seconds. `sideload` are the patterns of local paths
    that stand before them. `early` is a connection that was begun at the start.
    """

    offline: bool = False
    tls_verify: bool | None = None
    mirrors: bool = True
    retries: int = 5
    stall_timeout: float = 60.0
    credentials: Credentials | None = None
    anonymous: bool = False
    registry_token: str = ""
    sideload: Sequence[Pattern] = ()
    foreign_layers: bool = False
    early: Preconnection | None = None
