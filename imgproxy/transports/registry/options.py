"""What options say about the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from imgproxy.specs.http.credentials import Credentials


class NetworkOptions(NamedTuple):
    """What options say about the network; built by keyword only.

    `tls_verify` is None where registries.conf decides. `mirrors` is false where only the primary
    location is asked. `retries` are per mebibyte of progress; `stall_timeout` is in seconds.
    `anonymous`: no credentials are used. `registry_token` is a bearer token, empty for none.
    `foreign_layers`: layers may be fetched from the `urls` of their descriptors.
    `user_agent_prefix` comes before the name of this program, empty for none. For `outage_time`
    seconds, a registry that could not be reached is not asked again. `via` is the value of `Via` in
    requests to mirrors, empty for none.
    """

    offline: bool = False
    tls_verify: bool | None = None
    mirrors: bool = True
    retries: int = 5
    stall_timeout: float = 60.0
    credentials: Credentials | None = None
    anonymous: bool = False
    registry_token: str = ""
    foreign_layers: bool = False
    user_agent_prefix: str = ""
    outage_time: float = 0.0
    via: str = ""
