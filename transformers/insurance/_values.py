"""What raw fields mean: amounts, and how often they are paid."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from bson import Decimal128

#: Payments in a year.
PAYMENTS = {"yearly": 1, "half-yearly": 2, "quarterly": 4, "monthly": 12, "single": 0}


def amount(value: Any) -> Decimal128 | None:
    """Give an amount of money, exactly; None if there is none, and what is no number parks the document."""
    return None if value is None else Decimal128(Decimal(str(value)))


def annual_premium(policy: Mapping[str, Any]) -> Decimal128:
    """Give what is paid in a year. An unknown frequency parks the policy: a guess would be a wrong total."""
    times = PAYMENTS[policy.get("premium_frequency") or "yearly"]
    return Decimal128(Decimal(str(policy.get("premium") or 0)) * times)


def known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not known, so that a reader finds no field rather than an empty one."""
    return {name: value for name, value in fields.items() if value is not None}
