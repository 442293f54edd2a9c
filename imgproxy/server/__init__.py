"""HTTP/1.1 on inherited sockets and listeners; front-ends decide what a request means."""
