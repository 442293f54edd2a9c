"""The OCI and Docker specifications: documents, names, digests, archives."""
