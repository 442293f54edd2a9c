"""A server of FUSE for the files of a directory, read only: fuse(4), the kernel's `linux/fuse.h`.

It is run as a program by `support.hanging`. The kernel caches nothing, so that every call asks. A
byte on standard input makes it hang, and the next one go on.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
import sys

_STDIN, _STDOUT = 0, 1

_REQUEST = struct.Struct("<IIQQIIII")
_REPLY = struct.Struct("<IiQ")
_LOOKUP, _FORGET, _GETATTR, _READLINK, _OPEN, _READ, _RELEASE = 1, 2, 3, 5, 14, 15, 18
_INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _BATCH_FORGET = 26, 27, 28, 29, 36, 42
_UNANSWERED = (_FORGET, _INTERRUPT, _BATCH_FORGET)
_FOPEN_NOFLUSH = 1 << 5
_LARGEST = (1 << 17) + 4096


class _Server:
    """The answers to requests, for files of a directory that are only read."""

    def __init__(self, fd: int, directory: str) -> None:
        self._fd = fd
        self._paths = [b"", os.fsencode(directory)]  # by the number of the node
        self._answers = {
            _INIT: lambda _node, _body: struct.pack(
                "<IIIIHHIIHHI28x", 7, 31, 0, 0, 9, 9, *[4096] * 2, 0, 0, 0
            ),
            _LOOKUP: self._look_up,
            _GETATTR: lambda node, _: struct.pack("<QII", 0, 0, 0) + self._attributes(node),
            _READLINK: lambda node, _: os.readlink(self._paths[node]),
            # Closing a file is not asked about: no process ends, however it is killed, while it has
            # a file open whose server hangs and wants to be asked.
            _OPEN: lambda _node, _body: struct.pack("<QII", 0, _FOPEN_NOFLUSH, 0),
            _OPENDIR: lambda _node, _body: bytes(16),
            _READ: self._read,
            _READDIR: self._list,
            _RELEASE: lambda _node, _body: b"",
            _RELEASEDIR: lambda _node, _body: b"",
        }

    def run(self) -> None:
        while True:
            if _STDIN in select.select([self._fd, _STDIN], [], [])[0]:
                # Between two requests: the kernel ends no process that waits for the answer to one
                # that has been read.
                for _ in range(2):
                    os.read(_STDIN, 1)
                    os.write(_STDOUT, b".")
                continue
            request = os.read(self._fd, _LARGEST)
            _, operation, unique, node, *_ = _REQUEST.unpack_from(request)
            if operation in _UNANSWERED:
                continue
            error, reply = 0, b""
            try:
                reply = self._answers[operation](node, request[_REQUEST.size :])
            except KeyError:
                error = errno.ENOSYS  # which is not asked for again
            except OSError as failure:
                error = failure.errno or errno.EIO
            os.write(self._fd, _REPLY.pack(_REPLY.size + len(reply), -error, unique) + reply)

    def _look_up(self, node: int, body: bytes) -> bytes:
        self._paths.append(self._paths[node] + b"/" + body.rstrip(b"\0"))
        try:
            found = self._attributes(len(self._paths) - 1)
        except OSError:
            self._paths.pop()
            raise
        return struct.pack("<QQQQII", len(self._paths) - 1, 0, 0, 0, 0, 0) + found

    def _attributes(self, node: int) -> bytes:
        status = os.lstat(self._paths[node])
        times = (int(status.st_mtime),) * 3 + (0,) * 3
        return struct.pack(
            "<6Q10I",
            *(status.st_ino, status.st_size, status.st_blocks, *times),
            *(status.st_mode, 1, 0, 0, 0, 4096, 0),
        )

    def _read(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        with open(self._paths[node], "rb") as file:
            return os.pread(file.fileno(), size, offset)

    def _list(self, node: int, body: bytes) -> bytes:
        _, offset, _ = struct.unpack_from("<QQI", body)
        entries = b""
        for number, name in enumerate(sorted(os.listdir(self._paths[node])), 1):
            if number > offset:
                mode = os.lstat(self._paths[node] + b"/" + name).st_mode
                entry = struct.pack("<QQII", number, number, len(name), stat.S_IFMT(mode) >> 12)
                entries += entry + name + bytes(-len(name) % 8)
        return entries


if __name__ == "__main__":
    _Server(int(sys.argv[1]), sys.argv[2]).run()
