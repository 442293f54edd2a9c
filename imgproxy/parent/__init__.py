"""The parent's side, for programs in Python: start the proxy of an image and read from it.

    from imgproxy import parent

    with parent.start("docker://quay.io/libpod/alpine:latest", sockets=2) as child:
        manifest = child.manifest()
        for layer in manifest.layers:
            with child.blob(layer) as blob, open(layer.digest.encoded, "wb") as file:
                shutil.copyfileobj(blob, file)

`imgproxy.parent.with_trio` is the same for trio, with `async` before what waits. Importing this
package imports neither trio nor anything of the program beyond the values of its specifications:
the program is another process.

A blob that can be read to its end is what its digest says. One that cannot raises, and so does
everything else that goes wrong: whatever is raised is a `ParentError`, with facts to act on.

The half without I/O is `exchange` (one request and its reply), `pool` (who has which socket) and
`failures`; `process` is what both flavours need of the system without waiting for it.
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
    "start",
]
