"""This host: its environment, files, configuration and credentials, and where diagnostics go."""
