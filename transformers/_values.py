"""What raw fields mean: numbers that may be text."""

from decimal import Decimal
from typing import Any


def amount(value: Any) -> Decimal:
    """Give an amount of money, exactly; nothing is zero, and what is no number parks the document."""
    return Decimal(str(value or 0))


def whole(value: Any) -> int:
    """Give a count, which may have come as text or as a double; nothing is zero."""
    number = amount(value)
    if number % 1:
        raise ValueError(f"{value!r} is no whole number")
    return int(number)
