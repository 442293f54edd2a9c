"""The host: environment, files, configuration, credentials, diagnostics."""
