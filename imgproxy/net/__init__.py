"""HTTP/1.1 over the network: client, connections, TLS, byte streams."""
