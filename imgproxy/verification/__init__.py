"""Verification: the only place where bytes are compared with digests, and signatures with keys."""
