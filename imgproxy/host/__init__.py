"""What this host says: environment, files, configuration, credentials, diagnostics."""
