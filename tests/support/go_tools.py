"""Tools that no package of Debian has, built by `go install` at fixed versions, once."""

from __future__ import annotations

import fcntl
import os
import subprocess

from support.parent import ROOT
from support.servers import require, skip

_BUILT = ROOT / "build/tools"
_MODULES = {
    "crane": "github.com/google/go-containerregistry/cmd/crane@v0.22.1",
    "oras": "oras.land/oras/cmd/oras@v1.3.6",
    "regctl": "github.com/regclient/regclient/cmd/regctl@v0.11.7",
}


def go_tool(name: str) -> str:
    """Return the path of a tool, which is built first; skip the test where it cannot be."""
    path = _BUILT / name
    _BUILT.mkdir(parents=True, exist_ok=True)
    with (_BUILT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            install = [require("go"), "install", _MODULES[name]]
            env = {**os.environ, "GOBIN": str(_BUILT), "CGO_ENABLED": "0"}
            done = subprocess.run(install, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                skip(f"{name} cannot be built: {done.stderr[-300:]}")
    return str(path)
