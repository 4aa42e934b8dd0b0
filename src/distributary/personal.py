"""Personal data in derived collections that more people read than the raw ones: hidden, and still of use.

`mask_email` and `mask_phone` show a person that an address is theirs, and nobody else what it is. `pseudonym` tells
whether two values are the same to those who see only it; who has the key can compute it for a value that they know.
A hash without a key would hide nothing: addresses are few enough to be tried one after the other.

The key is that of the process, from `personal_data.key` of the configuration; `use_key` is called before transform
modules are loaded. Code that names `pseudonym` is refused at the start when there is none, and has another fingerprint
under another key.
"""

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from re import compile as pattern
from typing import Any
from unicodedata import normalize

__all__ = ["KeyMissing", "mask_email", "mask_phone", "plain_email", "plain_phone", "plain_place", "pseudonym"]

#: Hash and label of what tells two keys apart without telling either.
_HASH, _LABEL, _DIGITS = "sha256", b"distributary: which key is this?", 16

#: How a phone number is written: digits with what people put between them.
_PHONE = pattern(r"\+?[\d\s()./-]*\d[\d\s()./-]*")

Value = str | int | None


class KeyMissing(LookupError):
    """A pseudonym was asked for, and there is no key."""

    def __init__(self) -> None:
        super().__init__(f"there is no key for pseudonyms. {KEY_CURE}")


#: What to do where there is no key.
KEY_CURE = (
    "Set key in [personal_data] of the configuration, DISTRIBUTARY_PERSONAL_DATA__KEY, or "
    "DISTRIBUTARY_PERSONAL_DATA__KEY_FILE."
)

_key: bytes | None = None


def pseudonym(value: Value) -> str | None:
    """Give the keyed hash of a value, 64 hexadecimal digits: HMAC-SHA-256 (RFC 2104); None for None or empty text.

    Of the value its plain spelling counts: Unicode form NFKC, without white space around it, in lower case, in UTF-8.
    Phone numbers want `plain_phone` first. Raises `KeyMissing` without a key.
    """
    text = _plain(value)
    if not text:
        return None
    if _key is None:
        raise KeyMissing
    return hmac.digest(_key, text.encode(), _HASH).hex()


def plain_email(value: Value) -> str | None:
    """Give an e-mail address in the one spelling in which it is compared; None for None or empty text."""
    return _plain(value) or None


def plain_phone(value: Value) -> str | None:
    """Give a phone number in the one spelling in which it is compared, `+12025550147`; None for None or empty text.

    `00` at the beginning is `+`, and a `(0)` behind the country's number is left out. A number that came without its
    country stays without; what is no number (`ext. 12`) is only trimmed and in lower case.
    """
    text = _plain(value)
    if not _PHONE.fullmatch(text):
        return text or None
    digits = "".join(each for each in text.replace("(0)", "") if each.isdecimal())
    if text.startswith("+"):
        return f"+{digits}"
    return f"+{digits[2:]}" if digits.startswith("00") else digits


def plain_place(name: Any) -> Any:
    """Give the name of a place without needless white space, and not in capitals or small letters alone.

    None for empty text; what is no text is given as it is.
    """
    if not isinstance(name, str):
        return name
    text = " ".join(name.split())
    return (text.title() if text.isupper() or text.islower() else text) or None


def mask_email(value: Value) -> str | None:
    """Show the first letter and the domain of an e-mail address: `a***@example.com`; None for None or empty text."""
    user, at, domain = _plain(value).rpartition("@")
    return f"{user[:1]}***@{domain}" if at else ("***" if domain else None)


def mask_phone(value: Value) -> str | None:
    """Show the last two digits of a phone number: `***47`; None for None or empty text."""
    number = plain_phone(value)
    return f"***{number[-2:]}" if number else None


def _plain(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"a value of type {type(value).__name__} is no address: give text")
    return normalize("NFKC", str(value)).strip().lower()


def use_key(key: str | None) -> None:
    """Have all pseudonyms of this process made with a key, or with none."""
    global _key  # noqa: PLW0603 - transforms are called with a document and nothing else
    _key = key.encode() if key else None


def key_digest() -> str | None:
    """Give what another key has another of, and what does not tell the key; None without a key."""
    return hmac.digest(_key, _LABEL, _HASH).hex()[:_DIGITS] if _key else None


@contextmanager
def personal_key(key: str | None) -> Iterator[None]:
    """Have pseudonyms made with a key while this is entered, for tests; it decorates a test function, too."""
    before = _key
    use_key(key)
    try:
        yield
    finally:
        use_key(before.decode() if before else None)
