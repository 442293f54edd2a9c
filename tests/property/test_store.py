"""A store as a state machine, against a model of what it must have."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from support.effort import rounds
from support.images import OCI_MANIFEST, encode

from imgproxy.errors import InvalidError
from imgproxy.specs.oci import digest as digests
from imgproxy.store.collection import Collection
from imgproxy.store.content_store import ContentStore
from imgproxy.store.reachability import Documents
from imgproxy.store.users import User
from imgproxy.verification.documents import compare

if TYPE_CHECKING:
    from imgproxy.specs.oci.digest import Digest
    from imgproxy.specs.oci.layout_index import LayoutIndex
    from imgproxy.store.partial_blob import PartialBlob

NAMES = some.sampled_from(["a", "b", "c", "quay.io/acme/os:1"])
BLOBS = {digests.compute(content): content for content in (bytes([n]) * 9 * n for n in range(5))}


def _manifest(*layers: int) -> bytes:
    parts = [{"mediaType": "x/y", "digest": str([*BLOBS][n]), "size": 9 * n} for n in layers]
    return encode({"mediaType": OCI_MANIFEST, "config": parts[0], "layers": parts[1:]})


# Images: the digest and content of the manifest, and the digests of its blobs.
IMAGES = [
    (digests.compute(raw), raw, {[*BLOBS][n] for n in layers})
    for layers in ((0, 1), (0, 2), (1, 2, 3), (4,))
    for raw in [_manifest(*layers)]
]
ANY_IMAGE = some.sampled_from(IMAGES)
ANY_BLOB = some.sampled_from([*BLOBS])


class Store(RuleBasedStateMachine):
    """Operations of processes that follow one another, and of some that are killed."""

    users = Bundle("users")

    def __init__(self) -> None:
        super().__init__()
        self.path = tempfile.mkdtemp()
        self.no_sync = [mock.patch(f"os.{name}") for name in ("fsync", "fdatasync")]
        for each in self.no_sync:
            each.start()
        self.store = ContentStore(self.path)
        self.store.create()
        self.names: dict[str, Digest] = {}
        self.blobs: set[Digest] = set()
        self.relied: dict[User, set[Digest]] = {}
        self.begun: dict[Digest, bytes] = {}

    def teardown(self) -> None:
        """End."""
        for user in self.relied:
            user.close()
        for each in self.no_sync:
            each.stop()
        shutil.rmtree(self.path)

    def run(self, function: Any, *arguments: Any) -> Any:  # noqa: ANN401
        return trio.run(partial(function, *arguments))

    def fetch(self, digest: Digest) -> None:
        begun: PartialBlob | None = self.run(self.store.partial, digest, len(BLOBS[digest]))
        assert (begun is None) == (digest in self.blobs)
        if begun is not None:
            there = self.begun.pop(digest, b"")
            assert begun.size == len(there)
            begun.append(BLOBS[digest][begun.size :])
            begun.commit()
            self.blobs.add(digest)

    @rule(image=ANY_IMAGE, name=NAMES)
    def pull(self, image: tuple[Digest, bytes, set[Digest]], name: str) -> None:
        """Pull an image whole."""
        digest, raw, parts = image
        with self.store.using():
            self.store.put(digest, raw)
            self.blobs.add(digest)
            self.store.use(parts)
            for each in parts:
                self.fetch(each)
            entry = {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(raw)}
            self.run(self.store.change_index, lambda index: index.with_name(name, entry))
        self.names[name] = digest

    @rule(image=ANY_IMAGE, digest=ANY_BLOB)
    def pull_that_is_killed(self, image: tuple[Digest, bytes, set[Digest]], digest: Digest) -> None:
        """Begin a pull: the manifest, and half of a blob."""
        self.store.put(image[0], image[1])
        self.blobs.add(image[0])
        if digest not in self.blobs and digest not in self.begun and BLOBS[digest]:
            begun = self.run(self.store.partial, digest, len(BLOBS[digest]))
            begun.append(BLOBS[digest][:3])
            begun.close()
            self.begun[digest] = BLOBS[digest][:3]

    @rule(digest=ANY_BLOB)
    def blob(self, digest: Digest) -> None:
        """Fetch a blob that nothing names."""
        self.fetch(digest)

    @rule(target=users)
    def begin(self) -> User:
        """Begin a process."""
        user = User(self.store.users)
        self.relied[user] = set()
        return user

    @rule(user=users, digest=ANY_BLOB)
    def rely(self, user: User, digest: Digest) -> None:
        """Rely on a blob, if the process goes on."""
        if user in self.relied:
            user.add([digest])
            self.relied[user].add(digest)

    @rule(user=users, is_killed=some.booleans())
    def end(self, user: User, is_killed: bool) -> None:  # noqa: FBT001
        """End a process, in order or not."""
        if self.relied.pop(user, None) is not None:
            if is_killed:
                user._file.close()
            else:
                user.close()

    @rule(old=NAMES, new=NAMES)
    def tag(self, old: str, new: str) -> None:
        """Give another name, if there is the first."""
        if old in self.names:

            def change(index: LayoutIndex) -> LayoutIndex:
                return index.with_name(new, index.named(old)[0])

            self.run(self.store.change_index, change)
            self.names[new] = self.names[old]

    @rule(name=NAMES)
    def remove_name(self, name: str) -> None:
        """Remove a name."""
        self.run(self.store.change_index, lambda index: index.without_name(name))
        self.names.pop(name, None)

    @rule(image=ANY_IMAGE)
    def remove_image(self, image: tuple[Digest, bytes, set[Digest]]) -> None:
        """Remove all names of an image."""
        self.run(self.store.change_index, lambda index: index.without_digest(image[0]))
        self.names = {name: each for name, each in self.names.items() if each != image[0]}

    @rule(name=NAMES)
    def change_that_fails(self, name: str) -> None:
        """Change nothing, as an exception comes first."""

        def change(_: LayoutIndex) -> LayoutIndex:
            raise InvalidError(name)

        with pytest.raises(InvalidError, match=f"^{name}$"):
            self.run(self.store.change_index, change)

    @rule()
    def collect(self) -> None:
        """Collect without a grace period."""
        it = Collection(self.store, Documents(self.store, compare), 0)
        list(it.remove(it.find()))
        kept = {
            part
            for digest, _, parts in IMAGES
            for part in (digest, *parts)
            if digest in self.names.values()
        }
        self.blobs &= kept.union(*self.relied.values())
        self.begun.clear()
        assert len(os.listdir(self.store.users)) == len(self.relied)

    @rule()
    def collect_with_grace(self) -> None:
        """Collect what is old: nothing."""
        it = Collection(self.store, Documents(self.store, compare), 3600)
        assert it.find() == []

    @invariant()
    def names_are_those_of_the_model(self) -> None:
        """Check index.json."""
        index = self.store.index()
        assert {str(name): index.named(name)[0]["digest"] for name in index.names} == {
            name: str(digest) for name, digest in self.names.items()
        }
        assert len(index.entries) == len(self.names)

    @invariant()
    def blobs_are_those_of_the_model(self) -> None:
        """Check blobs, and what was begun."""
        path = f"{self.path}/blobs/sha256"
        found = set(os.listdir(path)) if os.path.isdir(path) else set()
        assert found == {digest.encoded for digest in self.blobs}
        for digest in self.blobs:
            with open(self.store.blob_path(digest), "rb") as file:
                assert digests.compute(file.read()) == digest
        assert len(os.listdir(self.store.partials)) == len(self.begun)


TestStore = Store.TestCase
TestStore.settings = settings(
    stateful_step_count=30, max_examples=rounds("IMGPROXY_PROPERTY_EXAMPLES", slow=60, quick=8)
)
