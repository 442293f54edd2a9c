"""Container images for programs that are not written in Go: one core, several doors.

The core finds an image and verifies it; a front-end speaks one protocol to one kind of client, and
the core depends on none of them. A folder imports from the folders below it in this table,
never from those above; `tests/test_floors.py` reads the table and holds the imports to it.

    cli             argv to a command: options, and the objects it needs
    frontends       what is spoken with clients: a single image over HTTP, skopeo's protocol
    images          an image: selection, catalog, the policy's verdict, what is released
    verification    where bytes are compared with digests, and signatures with keys
    transports      where images are, raw: the contract, local formats, registries, sideloading
    server          HTTP/1.1, packets and pipes on sockets; knows no image
    unpacking       files made of content from outside, in a tree that nothing leads out of
    store           an OCI layout on disk, safe for many writers
    net             HTTP client, connections, byte streams, TLS
    host            this host: environment, files, configuration, credentials, diagnostics
    config          what the containers-*(5) files say; pure
    specs           what specifications say: OCI, HTTP, signing; pure
    parsing         strict JSON, typed fields; pure
    single_flight   one attempt, shared by tasks that need the same result
    errors          the failures that clients receive

`__main__` stands above the table. `parent` stands beside it: a library for the other end of the
socket, which imports `specs`, `errors` and `unpacking` alone.

Only `host` reads the environment or a configuration path. Only `verification` compares bytes with
digests. Only `images` asks for the policy's verdict; `transports.registry.preconnect` asks too, so
as not to connect where the policy rejects. Calls go down, bytes are pulled back up.
"""

__version__ = "0.1.0"
