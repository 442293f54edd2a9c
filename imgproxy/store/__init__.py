"""A store: an OCI layout on disk that many processes write at the same time."""
