"""HTTP/1.1, packets and pipes on inherited sockets; front-ends decide what a request means."""
