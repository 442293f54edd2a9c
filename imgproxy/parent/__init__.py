"""A client library for parents in Python: start imgproxy for an image and read from it.

    from imgproxy import parent

    with parent.start("docker://quay.io/libpod/alpine:latest") as child:
        manifest = child.manifest()
        with child.blobs(manifest.layers) as blobs:  # several are requested ahead
            for blob in blobs:
                with open(blob.digest.encoded, "wb") as file:
                    shutil.copyfileobj(blob, file)

`unpack(child, directory)` makes a root file system of the image, as `imgproxy unpack` does.

`imgproxy.parent.with_trio` is the same for trio, with `async` methods. Since the program is another
process, this package imports neither trio nor any part of the program but `specs`, `errors` and,
when something is unpacked, `unpacking`.

A blob that has been read to its end matches its digest. Every failure raises a `ParentError`, with
attributes for programs to act on.

The modules without I/O are `exchange` (one request and its reply), `pool` (the assignment of
sockets) and `failures`; `process` contains the system calls of both variants that do not block.
"""

from imgproxy.parent.blocking import Blob, Child, start
from imgproxy.parent.exchange import Document, Manifest
from imgproxy.parent.failures import (
    BrokenReplyError,
    BusyError,
    Ending,
    HungUpError,
    ParentError,
    RefusedError,
    ShortBodyError,
    StalledError,
)
from imgproxy.parent.unpacking import UnpackError, unpack

__all__ = [
    "Blob",
    "BrokenReplyError",
    "BusyError",
    "Child",
    "Document",
    "Ending",
    "HungUpError",
    "Manifest",
    "ParentError",
    "RefusedError",
    "ShortBodyError",
    "StalledError",
    "UnpackError",
    "start",
    "unpack",
]
