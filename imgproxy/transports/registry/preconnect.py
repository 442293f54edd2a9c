"""The decision whether to connect to a registry before the event loop is there, and to which.

The policy is asked as well, so that no registry hears of an image that the policy rejects.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgproxy.config import endpoints
from imgproxy.config import policy as policies
from imgproxy.errors import Failure
from imgproxy.host import environment
from imgproxy.host.mounts import WouldWaitError
from imgproxy.net.preconnect import Preconnection
from imgproxy.specs.http import proxy
from imgproxy.specs.oci import distribution
from imgproxy.specs.oci import reference as references

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgproxy.host.configuration import Configuration


def begin(
    image: str,
    configuration: Configuration,
    is_wanted: Callable[[], bool],
    *,
    mirrors: bool,
    timeout: float,
) -> Preconnection | None:
    """Begin the connection that an image will need and return it, None if it is not known which.

    It leads to the first endpoint of an image that is named with its registry, over TLS and without
    a proxy, unless the policy rejects the image or registries.conf blocks it. `is_wanted` returns
    whether the manifest may be requested at once. `timeout` is in seconds.
    """
    try:
        name = references.parse_image(image)
        if not isinstance(name, references.Reference):
            return None
        policies.evaluate(configuration.policy(), "docker", policies.scopes_of(name), image)
        endpoint = endpoints.find(name, configuration.registries.registries, mirrors=mirrors)[0]
        url = distribution.registry_url(
            "https",
            endpoint.reference.registry,
            endpoint.reference.repository,
            distribution.ManifestPath(name.manifest),
        )
        if endpoint.refusal or endpoint.insecure or proxy.choose(url, environment.environment()):
            return None
    except (Failure, WouldWaitError):
        return None  # what fails is reported when the image is opened
    return Preconnection(
        url,
        {"Accept": distribution.ACCEPT_MANIFESTS},
        partial(configuration.certificates, endpoint.reference.registry),
        is_wanted,
        timeout,
    )
