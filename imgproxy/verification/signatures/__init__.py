"""What signatures prove: OpenPGP and sigstore, imported when a policy requires them."""
