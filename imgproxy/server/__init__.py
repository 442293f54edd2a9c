"""HTTP/1.1 on inherited sockets and listeners; nothing here knows of images."""
