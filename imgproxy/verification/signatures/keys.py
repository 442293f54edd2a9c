"""Keys and certificates that a policy names, and signatures by the kinds of keys of sigstore.

`cryptography` is imported inside the functions, when a requirement needs it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from imgproxy.errors import ConfigurationError, clean, shortage
from imgproxy.host import environment
from imgproxy.specs.signing import pem

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.x509 import Certificate

    from imgproxy.config.signature_requirements import Material

# A shorter key may have been factored, and used by others; 2048 is what sigstore requires.
_MIN_RSA = 2048

# In characters: a keyring may have a reason for each of its keys.
_MAX_REASON = 1024


def read(material: Material) -> list[tuple[str, bytes]]:
    """Return the content of each file or value that a requirement names, with a name for messages.

    Raises `ConfigurationError` for a file that cannot be read.
    """
    found = [(f"{material.field_path} of the policy", content) for content in material.contents]
    for path in material.paths:
        try:
            found.append((clean(path), environment.read_file(path)))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            what = f"{material.field_path} of the policy: reading {clean(path)}"
            raise shortage(what, error) or ConfigurationError(
                f"{what}: {reason}", file=path
            ) from None
    return found


def unusable(name: str, reason: object) -> ConfigurationError:
    """Return the failure for a key or a certificate that a policy names and that is unusable."""
    return ConfigurationError(f"{name} is unusable: {clean(str(reason), _MAX_REASON)}", file=name)


def public_keys(material: Material) -> list[PublicKey]:
    """Return the keys that a policy names, one in each file. Raises `ConfigurationError`."""
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    keys = []
    for name, content in read(material):
        try:
            der = pem.single_block(content, "PUBLIC KEY", "RSA PUBLIC KEY")
            keys.append(PublicKey(partial(load_der_public_key, der)))
        except ValueError as error:
            raise unusable(name, error) from None
    return keys


def log_keys(material: Material) -> list[PublicKey]:
    """Return the keys of logs, which must be elliptic. Raises `ConfigurationError`."""
    keys = public_keys(material)
    if not all(key.is_elliptic for key in keys):
        raise unusable(
            f"{material.field_path} of the policy", "the key of a log must be an ECDSA one"
        )
    return keys


def certificates(material: Material) -> list[Certificate]:
    """Return the certificates that a policy names. Raises `ConfigurationError`."""
    from cryptography import x509

    found: list[Certificate] = []
    for name, content in read(material):
        try:
            for label, der in pem.blocks(content):
                if label != "CERTIFICATE":
                    raise ValueError(f"expected certificates, got {label}")  # noqa: TRY301
                found.append(x509.load_der_x509_certificate(der))
        except Exception as error:  # noqa: BLE001  (whatever the library raises)
            raise unusable(name, error) from None
    return found


class PublicKey:
    """A public key that verifies signatures.

    Raises `ValueError` for what is not a key, or of a kind that sigstore does not sign with.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        try:
            self._key = load()
        except (UnsupportedAlgorithm, TypeError) as error:
            raise ValueError(f"a key of an unknown kind ({error})") from None
        self.is_elliptic = isinstance(self._key, ec.EllipticCurvePublicKey)
        self._parameters: tuple[object, ...]
        if self.is_elliptic:
            self._parameters = (ec.ECDSA(SHA256()),)
        elif isinstance(self._key, rsa.RSAPublicKey):
            self._parameters = (PKCS1v15(), SHA256())
            if self._key.key_size < _MIN_RSA:
                raise ValueError(
                    f"an RSA key of {self._key.key_size} bits, expected {_MIN_RSA} at least"
                )
        elif isinstance(self._key, ed25519.Ed25519PublicKey):
            self._parameters = ()
        else:
            raise ValueError("a key that is neither ECDSA nor RSA nor Ed25519")

    @property
    def der(self) -> bytes:
        """The key as it stands in logs: SubjectPublicKeyInfo."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        content: bytes = self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return content

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Return whether a signature of the message is by this key."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, message, *self._parameters)
        except InvalidSignature:
            return False
        return True
