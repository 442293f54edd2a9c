"""The formats of signatures: OpenPGP, simple signing, sigstore, Rekor."""
