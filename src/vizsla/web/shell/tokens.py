"""Creates, hashes and compares tokens. Only the hash of a token is stored.

Tokens are 256 random bits: a plain SHA-256 cannot be reversed, so a slow hash would gain nothing.
"""

import base64
import binascii
import hashlib
import hmac
import secrets

from vizsla.errors import UsageError

MIN_CHARACTERS = 16  # of a token that a person chose


def new_token() -> str:
    """64 hexadecimal digits, which need no quoting in a shell or a header."""
    return secrets.token_hex(32)


def hashed(token: str) -> str:
    """The token's SHA-256, as hexadecimal digits."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def chosen(token: str) -> str:
    """The token, if it fits into a header and is long enough; else UsageError."""
    if (
        len(token) < MIN_CHARACTERS
        or not token.isascii()
        or not token.isprintable()
        or " " in token
    ):
        raise UsageError(
            f"a token needs at least {MIN_CHARACTERS} ASCII characters without spaces: "
            "omit it, and one is created"
        )
    return token


def matches(token: str | None, token_hash: str | None) -> bool:
    """Whether the token has this hash, in constant time. Without a token or a hash: False."""
    same = hmac.compare_digest(hashed(token or ""), token_hash or hashed(""))
    return same and bool(token) and token_hash is not None


def from_header(authorization: str | None) -> str | None:
    """The token of `Bearer …`, or the password of `Basic …`, which browsers ask for."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip() or None
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(rest.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            return None
        return decoded.partition(":")[2] or None
    return None
