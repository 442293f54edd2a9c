"""What the OCI specifications say: pure."""
