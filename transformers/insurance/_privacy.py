"""Personal data in derived collections that more people read than the raw ones.

`masked` shows a person that an address is theirs, and nobody else what it is. `pseudonym` tells that two
addresses are the same, as partners compare them, to those who have the key: addresses are few enough to be guessed
one after the other, so that a hash without a key hides nothing.

The key is read when the modules are loaded, from the file that AUDIENCE_KEY_FILE names or else from
AUDIENCE_KEY, and must be the same for every process: the worker, `verify`, `rebuild`. Without a key there are
no pseudonyms. Another key is no change of code, so that it goes unnoticed: follow it with `distributary rebuild
members proposers`.
"""

import hmac
import os
from pathlib import Path


def _key() -> bytes:
    file = os.environ.get("AUDIENCE_KEY_FILE")
    return Path(file).read_bytes().strip() if file else os.environ.get("AUDIENCE_KEY", "").encode()


KEY = _key()


def address(value: object) -> str:
    """Give an e-mail address or a phone number in the one spelling in which it is compared."""
    return str(value or "").strip().lower()


def masked(value: str) -> str:
    """Show the first letter and the domain of an e-mail address, or the last two digits of a phone number."""
    user, at, domain = value.partition("@")
    return f"{user[:1]}***@{domain}" if at else f"***{value[-2:]}"


def pseudonym(value: str, key: bytes = KEY) -> str | None:
    """Give the keyed hash (HMAC-SHA-256, in hex) of an address; None without a key."""
    return hmac.new(key, value.encode(), "sha256").hexdigest() if key else None
