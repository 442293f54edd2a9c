"""HTTP/1.1, packets and pipes on sockets; front-ends decide what a request means."""
