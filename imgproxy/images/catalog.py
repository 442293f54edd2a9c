"""Images by name and what is chosen, each opened once for all that use it at the same time.

An image is shared while it is in use and counted: every user closes it once, and its sources are
closed with the last. A front-end that serves a single image is the simplest user.
"""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

from imgproxy.images.image import Image
from imgproxy.verification.verified_blob import LargeBlobs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from imgproxy.config.policy import Policy
    from imgproxy.images.opened_image import OpenForeign
    from imgproxy.images.selection import Wanted
    from imgproxy.transports.source import Source


N = TypeVar("N", bound="Hashable")


class Catalog(Generic[N]):
    """The images of a process, by name and what is chosen.

    A name is what `open_sources` takes, which returns the sources that may be meant, in the order
    to try them. `load_policy` returns the policy that applies; `open_foreign` opens layers from
    their `urls`. `warn` is that of `Image`. `close` closes what all sources share. The memory of
    the blobs of all images together is bounded, by `large_blobs` where that is given.
    """

    def __init__(
        self,
        open_sources: Callable[[N], Awaitable[list[Source]]],
        load_policy: Callable[[], Policy],
        open_foreign: OpenForeign,
        warn: Callable[[str], None] = lambda _: None,
        close: Callable[[], None] = lambda: None,
        large_blobs: LargeBlobs | None = None,
    ) -> None:
        self._close = close
        self._open_sources = open_sources
        self._load_policy = load_policy
        self._open_foreign = open_foreign
        self._warn = warn
        self._large_blobs = large_blobs or LargeBlobs()
        # By name, what is wanted, and a number other than 0 for an image that is not shared.
        self._images: dict[tuple[N, Wanted | None, int], _SharedImage] = {}
        self._numbers = count(1)

    def image(self, name: N, wanted: Wanted | None, *, anew: bool = False) -> Image:
        """Return an image, which is opened when it is first needed; close it once in any case.

        Where nothing is wanted, nothing is chosen from an index. `anew`: it is shared with nobody,
        so that a name that leads to another image by now does.
        """
        key = name, wanted, next(self._numbers) if anew else 0
        image = self._images.get(key)
        if image is None:
            image = self._images[key] = _SharedImage(
                partial(self._open_sources, name),
                self._load_policy,
                wanted,
                self._open_foreign,
                self._large_blobs,
                self._warn,
            )
            image.forget = partial(self._forget, key)
        image.users += 1
        return image

    def _forget(self, key: tuple[N, Wanted | None, int]) -> None:
        image = self._images.get(key)
        if image is not None and image.users == 0:  # it may be a later one than was closed
            del self._images[key]

    def forget(self) -> None:
        """Share no image any more that has been opened; those in use are closed by their users."""
        self._images = {}

    def close(self) -> None:
        """Close the sources of all images in use, and forget those images."""
        images, self._images = self._images, {}
        for image in images.values():
            image.close_sources()
        self._close()


class _SharedImage(Image):
    """An image that is closed, and forgotten, with the last of its `users`."""

    users = 0
    forget: Callable[[], None]

    def close(self) -> None:
        """Close the image for one of its users."""
        self.users -= 1
        if self.users == 0:
            self.forget()
            self.close_sources()

    def close_sources(self) -> None:
        """Close the sources for all users; one who opens the image again closes it as well."""
        super().close()
