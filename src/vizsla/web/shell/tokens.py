"""Tokens: made, hashed, compared. A token itself is shown once and kept nowhere.

Tokens are 256 random bits: a plain SHA-256 of one cannot be turned back, a slow hash gains nothing.
"""

import base64
import binascii
import hashlib
import hmac
import secrets

from vizsla.errors import UsageError

SHORTEST = 16  # characters of a token that somebody chose


def new_token() -> str:
    return secrets.token_hex(32)  # no character that a shell or a header could misread


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def chosen(token: str) -> str:
    """The token, if it is one that can be typed into a header and not easily guessed."""
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"a token needs at least {SHORTEST} ASCII characters without spaces: "
            "leave it out, and one is made"
        )
    return token


def matches(token: str | None, token_hash: str | None) -> bool:
    """In a time that tells nothing about either. Without a token or a hash: False."""
    same = hmac.compare_digest(hashed(token or ""), token_hash or hashed(""))
    return same and bool(token) and token_hash is not None


def from_header(authorization: str | None) -> str | None:
    """The token of `Bearer …`, or the password of `Basic …` as a browser asks for it."""
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
