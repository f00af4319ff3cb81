"""Password hashes: argon2id, 19 MiB and two passes (OWASP's first choice for little memory)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from functools import cache
from threading import BoundedSemaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_AT_ONCE = BoundedSemaphore(2)  # bounds the memory that a burst of logins can take in one process


def hash_password(password: str) -> str:
    """The argon2id hash, with salt and parameters inside."""
    with _AT_ONCE:
        return _HASHER.hash(password)


def password_matches(password_hash: str, password: str) -> bool:
    """Whether the password made this hash; False too for a hash that cannot be read."""
    with _AT_ONCE:
        try:
            return _HASHER.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False


@cache
def hash_of_nobody() -> str:
    """A hash that no password matches: an unknown user must take as long as a known one."""
    return hash_password(secrets.token_hex(32))


def secret_digest(password: str, secret_key: str, username: str) -> str:
    """A digest that recognises an unchanged password without argon2; worthless without the secret key."""
    message = f"{username}\0{password}".encode("utf-8", "surrogatepass")
    return hmac.new(
        secret_key.encode("utf-8", "surrogatepass"), b"admin password\0" + message, hashlib.sha256
    ).hexdigest()
