"""How long it takes to read one customer: from the view, and the same answer from the raw collections."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any

from bson import Decimal128
from pymongo.database import Database

from benchmarks.shop import key_of
from benchmarks.sides import VIEW
from benchmarks.workload import Document

#: Reads of each kind that come first and are not counted.
WARM_UP = 100

SEED = 1

Read = Callable[[str], Document]


@dataclass(frozen=True)
class Latency:
    """One way to read a customer, in milliseconds."""

    name: str
    reads: int
    p50: float
    p99: float
    worst: float


@dataclass(frozen=True)
class Reads:
    """Every way to read, the view first, and how many answers of the second were not those of the first."""

    ways: Sequence[Latency]
    wrong: int


#: The lines of an order that count, as the shipped module for orders has it.
_BOUGHT: Document = {
    "$cond": [
        {"$eq": ["$status", "cancelled"]},
        [],
        {"$filter": {"input": "$lineItems", "cond": {"$ne": ["$$this.cancelled", True]}}},
    ]
}

_COST: Document = {"$multiply": ["$$this.price", {"$toDecimal": "$$this.quantity"}]}

#: An order as it is shown in the view.
_ITEM: list[Document] = [
    {"$sort": {"_id": 1}},
    {"$set": {"lineItems": _BOUGHT}},
    {
        "$project": {
            "ordered_at": "$orderDate",
            "status": "$status",
            "items": {
                "$sum": {"$map": {"input": "$lineItems", "in": {"$toInt": "$$this.quantity"}}},
            },
            "total": {
                "$reduce": {
                    "input": "$lineItems",
                    "initialValue": Decimal128(Decimal("0.00")),
                    "in": {"$add": ["$$value", _COST]},
                }
            },
            "products": "$lineItems.productName",
        }
    },
]

_PLAIN_PHONE: Document = {"$replaceAll": {"input": "$phone", "find": "-", "replacement": ""}}

_PROFILE: Document = {
    "name": "$name",
    "email": {"$toLower": {"$trim": {"input": "$email"}}},
    "phone": {"$ifNull": [_PLAIN_PHONE, "$$REMOVE"]},
    "city": "$geo.city",
    "country": "$geo.country",
    "device": "$device.category",
    "since": "$createdAt",
    "consent": "$consent",
}


def ways(raw: Database[Document], derived: Database[Document]) -> Mapping[str, Read]:
    """Give the ways to read a customer by key."""
    return {
        f"find_one on {VIEW}": lambda key: derived[VIEW].find_one({"_id": key}) or {},
        "$lookup, the same answer": lambda key: _first(raw, key, _ITEM, {"profile": _PROFILE, "orders": 1}),
        "$lookup, orders as they are": lambda key: _first(raw, key, [{"$sort": {"_id": 1}}], None),
    }


def _first(raw: Database[Document], key: str, item: list[Document], shown: Document | None) -> Document:
    lookup = {
        "from": "orders",
        "localField": "_id",
        "foreignField": "userId",
        "pipeline": item,
        "as": "orders",
    }
    stages: list[Document] = [{"$match": {"_id": key}}, {"$lookup": lookup}]
    answer = list(raw["users"].aggregate([*stages, {"$project": shown}] if shown else stages))
    return answer[0] if answer else {}


def measure(raw: Database[Document], derived: Database[Document], customers: range, count: int) -> Reads:
    """Read so many customers that are drawn at random, each in every way before the next one."""
    rng, reads = Random(SEED), ways(raw, derived)
    taken: dict[str, list[float]] = {name: [] for name in reads}
    wrong = 0
    for number in range(WARM_UP + count):
        view, lookup = _read(key_of(rng.choice(customers)), reads, rng, taken if number >= WARM_UP else None)
        wrong += view != lookup
    return Reads([_latency(name, some) for name, some in taken.items()], wrong)


def _read(
    key: str, reads: Mapping[str, Read], rng: Random, taken: Mapping[str, list[float]] | None
) -> tuple[Any, Any]:
    """Read a customer in every way, in any order; give the answers of the first two, in one shape."""
    answers = {}
    for name in rng.sample(list(reads), len(reads)):
        began = time.perf_counter()
        answers[name] = reads[name](key)
        if taken is not None:
            taken[name].append(1000 * (time.perf_counter() - began))
    view, lookup, *_ = (dict(_shown(answers[name])) for name in reads)
    return view, lookup


def _shown(answer: Document) -> Iterator[tuple[str, Any]]:
    """Give what both answers have: not the engine's field, and a list only if there is something in it."""
    return ((name, value) for name, value in answer.items() if name != "_src" and value != [])


def _latency(name: str, taken: Sequence[float]) -> Latency:
    ordered = sorted(taken)
    p50, p99 = (ordered[int(len(ordered) * share)] for share in (0.50, 0.99))
    return Latency(name, len(ordered), p50, p99, ordered[-1])
