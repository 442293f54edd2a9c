"""Verification of signatures: OpenPGP and sigstore, imported when a policy requires them."""
