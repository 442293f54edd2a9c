"""The OCI and Docker specifications: documents, names, digests and archives."""
