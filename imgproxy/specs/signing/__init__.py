"""The formats of image signatures: OpenPGP, simple signing, sigstore and Rekor."""
