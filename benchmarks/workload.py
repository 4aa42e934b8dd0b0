"""The one workload of every contender: raw orders, the operations on them, and their fan-out."""

import random
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from typing import Any, Literal, NamedTuple

from bson import ObjectId
from pymongo import DeleteOne, InsertOne, MongoClient, UpdateOne
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

Document = dict[str, Any]


class Operation(NamedTuple):
    """One operation on an order: `document` is what to insert or the fields to set, None to delete."""

    kind: Literal["insert", "update", "delete"]
    key: ObjectId | int
    document: Document | None


RAW = "raw"
DERIVED = "derived"
SOURCE = "orders"

#: Each derived collection, and the field of its documents that names the order they come from.
OWNERS = {"orders_by_customer": "_id", "order_lines": "order", "order_status": "order"}

INSERTS, UPDATES = 0.70, 0.25  # the rest are deletes
STATUSES = ("placed", "paid", "packed", "shipped", "delivered", "returned")
START = datetime(2024, 1, 1, tzinfo=UTC)
APPLY_CHUNK = 100  # operations that are regrouped by kind, so that a bulk write is three commands
FAST = WriteConcern(w=1)  # where what is written is not measured


def fan_out(order: Document) -> Iterator[tuple[str, Document]]:
    """Give the derived documents of an order, about five, each with its collection."""
    number, customer, sent = order["_id"], order["customer"], order["sent"]
    yield (
        "orders_by_customer",
        {
            "_id": number,
            "customer": customer,
            "ordered_at": order["ordered_at"],
            "status": order["status"],
            "total": order["total"],
            "lines": len(order["lines"]),
            "sent": sent,
        },
    )
    for place, line in enumerate(order["lines"], start=1):
        yield (
            "order_lines",
            {
                "_id": {"order": number, "line": place},
                "order": number,
                "customer": customer,
                "sku": line["sku"],
                "quantity": line["quantity"],
                "amount": line["quantity"] * line["price"],
                "sent": sent,
            },
        )
    yield (
        "order_status",
        {
            "_id": {"status": order["status"], "order": number},
            "order": number,
            "customer": customer,
            "since": order["updated_at"],
            "sent": sent,
        },
    )


class Orders:
    """A deterministic, endless series of operations on orders; every one of them changes its document.

    70% inserts, 25% updates (15 of them the status, 6 the lines, 4 the customer), 5% deletes, on orders
    that are drawn evenly from those that are alive.
    """

    def __init__(self, seed: int = 20240101) -> None:
        self._random = random.Random(seed)
        self._numbers = count(1)
        self._alive: list[ObjectId] = []
        self._now = START

    def operations(self, amount: int, *, deletes: bool = True) -> Iterator[Operation]:
        """Give the next operations; without deletes, their share goes to the inserts."""
        for _ in range(amount):
            yield self.operation(deletes=deletes)

    def operation(self, *, deletes: bool = True) -> Operation:
        """Give the next operation."""
        self._now += timedelta(seconds=1)
        kind = self._random.random()
        if not self._alive or kind < INSERTS or (not deletes and kind >= INSERTS + UPDATES):
            order = self._order()
            return Operation("insert", order["_id"], order)
        if kind < INSERTS + UPDATES:
            return Operation("update", self._random.choice(self._alive), self._update())
        return Operation("delete", self._take(), None)

    def _order(self) -> Document:
        number = next(self._numbers)
        order = ObjectId(number.to_bytes(12))
        self._alive.append(order)
        lines = self._lines()
        return {
            "_id": order,
            "customer": self._customer(),
            "status": "placed",
            "ordered_at": self._now,
            "updated_at": self._now,
            "lines": lines,
            "total": _total(lines),
            "sent": 0,
        }

    def _update(self) -> Document:
        kind = self._random.random()
        if kind < 0.60:
            return {"status": self._random.choice(STATUSES), "updated_at": self._now}
        if kind < 0.85:
            lines = self._lines()
            return {"lines": lines, "total": _total(lines), "updated_at": self._now}
        return {"customer": self._customer(), "updated_at": self._now}

    def _lines(self) -> list[Document]:
        return [
            {
                "sku": f"SKU-{self._random.randrange(2_000):05}",
                "quantity": self._random.randint(1, 4),
                "price": self._random.randrange(199, 19_999),
            }
            for _ in range(self._random.randint(1, 5))
        ]

    def _customer(self) -> str:
        return f"C{self._random.randrange(10_000):06}"

    def _take(self) -> ObjectId:
        place = self._random.randrange(len(self._alive))
        self._alive[place], self._alive[-1] = self._alive[-1], self._alive[place]
        return self._alive.pop()


def _total(lines: list[Document]) -> int:
    return sum(line["quantity"] * line["price"] for line in lines)


def apply(operations: Iterable[Operation], orders: Collection[Document]) -> None:
    """Carry the operations out, in bulk: within a chunk first the inserts, then updates, then deletes."""
    kinds = ("insert", "update", "delete")
    pending = iter(operations)
    while chunk := sorted(islice(pending, APPLY_CHUNK), key=lambda operation: kinds.index(operation.kind)):
        orders.bulk_write([_request(operation) for operation in chunk])


def _request(operation: Operation) -> InsertOne[Document] | UpdateOne | DeleteOne:
    kind, key, document = operation
    if kind == "insert":
        return InsertOne(document or {})
    if kind == "update":
        return UpdateOne({"_id": key}, {"$set": document})
    return DeleteOne({"_id": key})


def token_now(database: Database[Document]) -> str:
    """Give a resume token of the present moment."""
    with database.watch() as stream:
        token = stream.resume_token
        while token is None:
            stream.try_next()
            token = stream.resume_token
        return str(token["_data"])


def create_owner_indexes(client: MongoClient[Document]) -> None:
    """Build what a contender needs to find the derived documents of an order; distributary has its own."""
    for collection, field in OWNERS.items():
        if field != "_id":
            client[DERIVED][collection].create_index(field)
