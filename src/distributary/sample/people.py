"""What the documents of every domain have: people, where they live, money, and chance that can be repeated."""

from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import normalize

from bson import Decimal128

from distributary.errors import EnvironmentFault

if TYPE_CHECKING:
    from faker import Faker

Document = dict[str, Any]

#: Dates count from this day, never from a clock.
FIRST_DAY = datetime(2025, 1, 1, 9, tzinfo=UTC)

SEED = 20_250_101

#: Where people have their names and addresses from, and the country.
_LOCALES = {
    "de_DE": "DE", "en_GB": "GB", "en_US": "US", "es_ES": "ES",
    "fr_FR": "FR", "it_IT": "IT", "nl_NL": "NL", "pl_PL": "PL",
}  # fmt: skip

#: Different names, and different addresses, of one locale; so few that a hundred thousand people take seconds.
_NAMES, _ADDRESSES = 300, 200


class Pool(NamedTuple):
    """Names and addresses of one country."""

    given: tuple[str, ...]
    family: tuple[str, ...]
    addresses: tuple[dict[str, str], ...]


@cache
def pools() -> tuple[Pool, ...]:
    """Give what people are put together from: Faker's, the same every time with one version of it."""
    try:
        from faker import Faker  # noqa: PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            "There is no faker, which the names and addresses of the sample data come from.",
            "Run `pip install 'distributary[embedded]'`.",
        ) from error
    return tuple(_pool(Faker(locale), country) for locale, country in _LOCALES.items())


def _pool(faker: "Faker", country: str) -> Pool:
    faker.seed_instance(SEED)
    family = (faker.last_name() for _ in range(_NAMES))
    return Pool(
        tuple(faker.first_name() for _ in range(_NAMES)),
        tuple(each for each in family if "," not in each),
        tuple(_address(faker, country) for _ in range(_ADDRESSES)),
    )


def _address(faker: "Faker", country: str) -> dict[str, str]:
    street = " ".join(faker.street_address().split())
    return {"street": street, "postcode": faker.postcode(), "city": faker.city(), "country": country}


def name(rng: Random) -> dict[str, str]:
    """Make a person's name."""
    pool = rng.choice(pools())
    return {"given": rng.choice(pool.given), "family": rng.choice(pool.family)}


def email(called: dict[str, str], number: int) -> str:
    """Make the address of a person with this name; `number` tells namesakes apart."""
    return f"{_in_ascii(called['given'])}.{_in_ascii(called['family'])}{number}@example.com"


@cache
def _in_ascii(text: str) -> str:
    """Give a name as addresses have it: small letters without their marks, and nothing else."""
    letters = normalize("NFKD", text.lower().replace("ł", "l").replace("ß", "ss"))
    return "".join(each for each in letters if each.isascii() and each.isalnum())


def phone(rng: Random) -> str:
    """Make a phone number that nobody has; some are drawn twice, as households share one."""
    return f"+1-202-555-{rng.randrange(10_000):04}"


def place(rng: Random) -> dict[str, str]:
    """Make a city and its country."""
    found = address(rng)
    return {"city": found["city"], "country": found["country"]}


def address(rng: Random) -> dict[str, str]:
    """Make an address: street, postcode, city, country."""
    return dict(rng.choice(rng.choice(pools()).addresses))


def money(amount: float | Decimal) -> Decimal128:
    """Give an amount to the cent."""
    return Decimal128(Decimal(amount).quantize(Decimal("0.01")))


def few(rng: Random, count: int, skew: int = 2) -> int:
    """Draw from `range(count)`, small numbers more often, the more so the higher `skew`."""
    return int(count * rng.random() ** skew)


def chance(seed: int, *what: object) -> Random:
    """Give random numbers that depend on the seed and on what they are for."""
    return Random(f"{seed} {what}")  # noqa: S311 - data, no secret
