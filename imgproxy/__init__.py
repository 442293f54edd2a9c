"""Container images over HTTP on a socket, for programs that are not written in Go.

A parent process holds one half of a socketpair and asks for `/manifest` and `/blobs/<digest>`; this
program, its child, finds the image, chooses for the platform, verifies, and answers.

The house, from the ground up; a module imports from its own floor's rooms below it or from lower
floors, never upwards, and `tests/test_floors.py` holds it to that:

    5  __main__, cli, service      argv → exit status; every conversation of the process
    4  server                      one HTTP/1.1 conversation
    3  image, verify, trust        where trust happens: platform, policy, conversion, verification
                                   of digests, and of signatures where a policy demands them
    2  transports                  where images are: raw access, nothing verified
    1  client, request, response,  the world outside: HTTP upstream, connections, sockets and pipes,
       dialling, wire, files,      local files, which descriptors we were handed, environment and
       activation, system,         standard error, what is configured, credentials and helpers; one
       settings, keyring,          attempt for all who want the same; a connection that is begun
       shared, early, tls,         while the event loop is imported; and the socket's other end: a
       parent                      library for parents, which knows spec and errors alone
    0  spec, config, api, fields, strict_json, errors
                                   pure: what specifications and configuration files say

Only `system` reads the environment or a configuration path. Only `verify` compares bytes with
digests, only `image` asks for the policy's verdict, but for `early`, which does not dial where that
is a no. Calls go down, bytes are pulled back up.
"""

__version__ = "0.1.0"
