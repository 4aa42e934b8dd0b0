"""What the documents of every domain have: people, where they live, money, and chance that can be repeated."""

from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import Any

from bson import Decimal128

Document = dict[str, Any]

#: Dates count from this day, never from a clock.
FIRST_DAY = datetime(2025, 1, 1, 9, tzinfo=UTC)

SEED = 20_250_101

# fmt: off
_GIVEN = (
    "Ada", "Amir", "Anna", "Ben", "Carla", "Chen", "Clara", "David", "Elif", "Emil", "Farah", "Felix",
    "Grace", "Hana", "Hugo", "Ines", "Ivan", "Kofi", "Lea", "Luis", "Maja", "Nadia", "Noah", "Olga", "Priya",
    "Rosa", "Sami", "Tara", "Theo", "Yuki", "Zoe",
)
_FAMILY = (
    "Adams", "Ahmed", "Bauer", "Brown", "Costa", "Diaz", "Dubois", "Evans", "Garcia", "Haddad", "Hansen",
    "Ito", "Jensen", "Kim", "Klein", "Kovacs", "Lopez", "Martin", "Meyer", "Nguyen", "Novak", "Patel",
    "Petrov", "Rossi", "Santos", "Sato", "Silva", "Singh", "Smith", "Weber", "Wong", "Yilmaz",
)
_CITIES = {
    "Amsterdam": "NL", "Berlin": "DE", "Chicago": "US", "Dublin": "IE", "Lagos": "NG", "Lisbon": "PT",
    "London": "GB", "Lyon": "FR", "Madrid": "ES", "Milan": "IT", "Mumbai": "IN", "Osaka": "JP", "Oslo": "NO",
    "Seattle": "US", "Toronto": "CA", "Vienna": "AT", "Warsaw": "PL",
}
# fmt: on


def name(rng: Random) -> dict[str, str]:
    """Make a person's name."""
    return {"given": rng.choice(_GIVEN), "family": rng.choice(_FAMILY)}


def email(called: dict[str, str], number: int) -> str:
    """Make the address of a person with this name; `number` tells namesakes apart."""
    return f"{called['given']}.{called['family']}{number}@example.com".lower()


def phone(rng: Random) -> str:
    """Make a phone number that nobody has; some are drawn twice, as households share one."""
    return f"+1-202-555-{rng.randrange(10_000):04}"


def place(rng: Random) -> dict[str, str]:
    """Make a city and its country."""
    city = rng.choice(list(_CITIES))
    return {"city": city, "country": _CITIES[city]}


def money(amount: float | Decimal) -> Decimal128:
    """Give an amount to the cent."""
    return Decimal128(Decimal(amount).quantize(Decimal("0.01")))


def few(rng: Random, count: int, skew: int = 2) -> int:
    """Draw from `range(count)`, small numbers more often, the more so the higher `skew`."""
    return int(count * rng.random() ** skew)


def chance(seed: int, *what: object) -> Random:
    """Give random numbers that depend on the seed and on what they are for."""
    return Random(f"{seed} {what}")  # noqa: S311 - data, no secret
