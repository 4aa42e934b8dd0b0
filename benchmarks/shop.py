"""The shop whose customers are looked at: users, products and orders of any number, and changes of orders.

The documents are those of the sample data. Orders per customer are log-normal: with ten on average, half of the
customers have six or fewer, and a few have hundreds. Everything is the same every time.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import accumulate, count, islice
from random import Random
from typing import Any, NamedTuple

from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from benchmarks.workload import Document, Operation
from distributary.sample import people, retail

PRODUCTS = 1_000

#: One order in so many was made in a session of the web shop.
ONLINE = 4

#: Documents in one bulk write.
BULK = 5_000

INSERTS, UPDATES = 0.70, 0.25  # the rest are deletes
STATUS_MOVES, LINES_CHANGE = 0.60, 0.25  # of the updates; the rest move the order to another customer

#: What becomes of orders, and how many of a hundred there are.
STATUSES = {"placed": 5, "paid": 5, "shipped": 5, "delivered": 80, "cancelled": 5}


class Block(NamedTuple):
    """Changes of orders, and the customers that they touch; who loses an order to another one is touched, too."""

    operations: list[Operation]
    touched: set[int]


class _Order(NamedTuple):
    customer: int
    status: str


def key_of(customer: int) -> str:
    """Give the key of a user by their number, from 1 on."""
    return f"U{customer:06}"


class Shop:
    """Knows whose the orders are that exist."""

    def __init__(self, customers: int, seed: int = people.SEED) -> None:
        self.customers = range(1, customers + 1)
        self._rng = Random(seed)
        self._goods = [retail.product(self._rng, number) for number in range(1, PRODUCTS + 1)]
        self._numbers, self._revisions = count(1), count(1)
        self._orders: dict[int, _Order] = {}
        self._alive: list[int] = []

    def load(self, raw: Database[Document], orders: int) -> None:
        """Insert users, products and orders into empty collections, with the index that an application has."""
        _insert(raw, "users", (retail.user(self._rng, number) for number in self.customers))
        _insert(raw, "products", self._goods)
        _insert(raw, "orders", self._past(orders))
        raw["orders"].create_index([("userId", 1), ("_id", 1)])

    def _past(self, orders: int) -> Iterator[Document]:
        weights = list(accumulate(self._rng.lognormvariate(0, 1) for _ in self.customers))
        statuses, shares = list(STATUSES), list(STATUSES.values())
        for _ in range(orders):
            (buyer,) = self._rng.choices(self.customers, cum_weights=weights)
            (status,) = self._rng.choices(statuses, shares)
            yield self._order(buyer, status)

    def changes(self, amount: int) -> Block:
        """Give the next changes: new orders of customers that are drawn evenly, updates and deletes of any order."""
        touched: set[int] = set()
        return Block([self._change(touched) for _ in range(amount)], touched)

    def _change(self, touched: set[int]) -> Operation:
        kind = self._rng.random()
        if kind < INSERTS or not self._alive:
            made = self._order(self._anybody(touched), "placed")
            return Operation("insert", made["_id"], made)
        place = self._rng.randrange(len(self._alive))
        number = self._alive[place]
        touched.add(self._orders[number].customer)
        if kind < INSERTS + UPDATES:
            return Operation("update", number, self._update(number, touched))
        self._alive[place] = self._alive[-1]
        self._alive.pop()
        del self._orders[number]
        return Operation("delete", number, None)

    def _update(self, number: int, touched: set[int]) -> Document:
        kind, before = self._rng.random(), self._orders[number]
        revision = {"revision": next(self._revisions)}
        if kind < STATUS_MOVES:
            status = self._rng.choice([status for status in STATUSES if status != before.status])
            self._orders[number] = before._replace(status=status)
            return {"status": status, **revision}
        if kind < STATUS_MOVES + LINES_CHANGE:
            return {"lineItems": self._lines(number), **revision}
        customer = self._anybody(touched)
        self._orders[number] = before._replace(customer=customer)
        return {"userId": key_of(customer), **revision}

    def _anybody(self, touched: set[int]) -> int:
        customer = self._rng.choice(self.customers)
        touched.add(customer)
        return customer

    def _lines(self, number: int) -> Any:
        return self.order(number, "")["lineItems"]

    def _order(self, customer: int, status: str) -> Document:
        number = next(self._numbers)
        self._orders[number] = _Order(customer, status)
        self._alive.append(number)
        session = {} if number % ONLINE else {"gaSessionId": f"S{number:08}"}
        return self.order(number, key_of(customer)) | session | {"status": status}

    def order(self, number: int, buyer: str) -> Document:
        """Make an order that is not counted among those of the shop; they come every half a minute."""
        at = people.FIRST_DAY + timedelta(seconds=30 * number)
        return retail.order(self._rng, number, buyer, self._goods, at)


def _insert(raw: Database[Document], name: str, documents: Iterable[Document]) -> None:
    fast = raw[name].with_options(write_concern=WriteConcern(w=1))
    rest = iter(documents)
    while some := list(islice(rest, BULK)):
        fast.insert_many(some, ordered=False)
