"""What makes a data set like those of real systems: how its documents are written, and how they arrive.

The end of an arrival is the data set itself: whatever comes late, is corrected or merged on the way, the raw
collections hold the same documents in the end.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from random import Random
from typing import Any, NamedTuple

from distributary.sample.people import Document, chance

#: One in so many documents arrives late, and how many others may come before it.
LATE, LATE_BY = 20, 200

#: One in so many documents arrives with mistakes, and is replaced by what is right.
CORRECTED = 25

#: One in so many customers is known twice at first.
TWICE = 50

#: One in so many optional fields was not filled in.
MISSING = 40


class Write(NamedTuple):
    """One write to a raw collection: `insert` and `replace` with the document, `update` with fields, or `delete`."""

    collection: str
    operation: str
    key: Any
    document: Document


class Customers(NamedTuple):
    """The collection that customers are documents of, and by collection the field that says whose a document is."""

    collection: str
    links: Mapping[str, str]


# --- how documents are written ------------------------------------------------------------------------------


def phone(rng: Random, number: str) -> str:
    """Write a number such as `+1-202-555-0147` in one of the ways that people and systems have."""
    digits = "".join(filter(str.isdecimal, number)).removeprefix("00")
    country, area, first, last = digits[:-10], digits[-10:-7], digits[-7:-4], digits[-4:]
    written = f"+{country}-{area}-{first}-{last}"
    ways = (written, written, f"+{country} ({area}) {first}-{last}", f"00{digits}", f"+{digits}")
    return rng.choice(ways)


def email(rng: Random, address: str) -> str:
    """Write an address in capitals or with white space, now and then."""
    return rng.choice((address, address, address, address.upper(), address.title(), f" {address} "))


def city(rng: Random, name: str) -> str:
    """Write a city in one case or with white space, now and then."""
    return rng.choice((name, name, name, name, name.upper(), name.lower(), f"{name}  "))


_SPELLED: Mapping[str, Callable[[Random, str], str]] = {
    "phone": phone,
    "email": email,
    "city": city,
    "geo_city": city,
}


def spelled(rng: Random, document: Document) -> Document:
    """Write what a document says in one of its spellings, also what is in documents within it."""
    return {name: _spelled(rng, name, value) for name, value in document.items()}


def _spelled(rng: Random, name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return spelled(rng, value)
    return _SPELLED[name](rng, value) if name in _SPELLED and isinstance(value, str) else value


def incomplete(rng: Random, document: Document, optional: Iterable[str]) -> Document:
    """Leave out an optional field, or have nothing in it, now and then."""
    made = dict(document)
    for name in optional:
        if name in made and rng.random() * MISSING < 1:
            if rng.randrange(2) or isinstance(made[name], dict):
                del made[name]
            else:
                made[name] = None
    return made


# --- how they arrive ----------------------------------------------------------------------------------------


def arrival(
    data_set: Iterable[tuple[str, Iterable[Document]]], customers: Customers, seed: int
) -> Iterator[Write]:
    """Give the writes by which a data set arrives: late and out of order, corrected, and with customers known twice.

    A customer who is known twice has a second document, and some of their documents name it, until both are merged:
    then those documents are moved to the first one, and the second is deleted.
    """
    second: dict[Any, Any] = {}
    moved: list[Write] = []
    for name, documents in data_set:
        rng = chance(seed, "arrival", name)
        known = _with_seconds(rng, documents, second) if name == customers.collection else documents
        for document in _late(rng, known):
            yield from _arriving(rng, name, document, customers, second, moved)
    yield from moved
    yield from (Write(customers.collection, "delete", key, {}) for key in second.values())


def _with_seconds(rng: Random, documents: Iterable[Document], second: dict[Any, Any]) -> Iterator[Document]:
    """Give customers and their second documents, and note whose those are."""
    for document in documents:
        yield document
        if rng.randrange(TWICE) == 0:
            second[document["_id"]] = f"{document['_id']}-2"
            yield spelled(rng, document) | {"_id": second[document["_id"]]}


def _late(rng: Random, documents: Iterable[Document]) -> Iterator[Document]:
    """Give documents in their order but for some that wait until others have come."""
    waiting: list[tuple[int, Document]] = []
    for number, document in enumerate(documents):
        if rng.randrange(LATE) == 0:
            waiting.append((number + rng.randrange(1, LATE_BY), document))
        else:
            yield document
        yield from (each for due, each in waiting if due <= number)
        waiting = [(due, each) for due, each in waiting if due > number]
    yield from (each for _, each in waiting)


def _arriving(
    rng: Random,
    name: str,
    document: Document,
    customers: Customers,
    second: Mapping[Any, Any],
    moved: list[Write],
) -> Iterator[Write]:
    """Give the writes of one document, and note the one that moves it when its customers are merged."""
    key, link = document["_id"], customers.links.get(name, "")
    whose = document.get(link)
    if whose in second and rng.randrange(2):
        yield Write(name, "insert", key, document | {link: second[whose]})
        moved.append(Write(name, "update", key, {link: whose}))
    elif rng.randrange(CORRECTED) == 0:
        yield Write(name, "insert", key, _mistaken(rng, document, link))
        yield Write(name, "replace", key, document)
    else:
        yield Write(name, "insert", key, document)


def _mistaken(rng: Random, document: Document, link: str) -> Document:
    """Give a document as it was entered at first: something is missing, or written otherwise."""
    optional = [name for name in document if name not in ("_id", link)]
    forgotten = rng.choice(optional)
    return spelled(rng, {name: value for name, value in document.items() if name != forgotten})
