"""What one more item costs in a customer whose list is long already, beside a customer with a short one."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

from bson import Timestamp
from pymongo import MongoClient
from pymongo.database import Database

from benchmarks import process
from benchmarks.shop import Shop
from benchmarks.sides import VIEW, Side
from benchmarks.workload import RAW, Document
from distributary.errors import Failed

#: Items in the lists that are measured, and in the one beside them.
LENGTHS, SHORT = (100, 1_000, 10_000), 10

#: Commits of each kind that come first and are not counted.
WARM_UP = 3

#: Orders of one customer have even numbers from here on, those that are added the odd ones between them.
PER_CUSTOMER = 100_000

READY_SECONDS, SHOWN_SECONDS = 600.0, 30.0
POLL_SECONDS, LOOK_SECONDS = 0.0005, 0.1

#: What is done in turns, so that a list has its length again after all of them.
ACTS = ("append", "remove the last", "insert between", "remove between", "replace")


@dataclass(frozen=True)
class Cost:
    """What a commit of one kind takes with so many items: milliseconds from the write until it is seen in the view.

    `beside` is the same for the short list, in the same minute; `document` is the size of the view's document and
    `history` what the commit adds to the server's history, both in bytes. `peak_mb` is the worker's until then.
    """

    items: int
    act: str
    commits: int
    milliseconds: float
    beside: float
    document: int
    history: int
    peak_mb: float


@dataclass(frozen=True)
class Commit:
    """One commit: seconds until it was seen, and the bytes that it took in the history."""

    seconds: float
    history: int


class Customer:
    """A user with so many orders; an act changes one of them."""

    def __init__(self, shop: Shop, raw: Database[Document], place: int, items: int) -> None:
        self.key = f"L{items}-{place}"
        self.items = items
        self._shop = shop
        self._raw = raw
        self._first = PER_CUSTOMER * place
        self._rng = Random(place)
        self._added = 0
        self._revision = 0

    def load(self) -> None:
        """Insert the user and the orders."""
        self._raw["users"].insert_one({"_id": self.key, "email": f"{self.key}@example.com"})
        numbers = range(self._first, self._first + 2 * self.items, 2)
        self._raw["orders"].insert_many([self._shop.order(number, self.key) for number in numbers])

    def add(self, number: int) -> Callable[[], object]:
        """Give the insert of an order."""
        self._added = number
        made = self._shop.order(number, self.key)
        return lambda: self._raw["orders"].insert_one(made)

    def replace(self) -> Callable[[], object]:
        """Give an update of one of the orders, which changes its item."""
        self._revision += 1
        change = {"$set": {"status": f"in state {self._revision}"}}
        number = self._any()
        return lambda: self._raw["orders"].update_one({"_id": number}, change)

    def remove(self) -> Callable[[], object]:
        """Give the delete of the order that was added last."""
        return lambda: self._raw["orders"].delete_one({"_id": self._added})

    def act(self, name: str) -> Callable[[], object]:
        """Give the write of an act, which is made ready."""
        if name == "replace":
            return self.replace()
        if name.startswith("remove"):
            return self.remove()
        return self.add(self._first + 2 * self.items if name == "append" else self._any() + 1)

    def _any(self) -> int:
        return self._first + 2 * self._rng.randrange(self.items)


class View:
    """What is seen of customers in the derived database."""

    def __init__(self, client: MongoClient[Document], derived: str) -> None:
        self._customers = client[derived][VIEW]
        self._history = client["local"]["oplog.rs"]

    def await_items(self, customers: Sequence[Customer], seconds: float) -> None:
        """Return once all of them have their lists."""
        wanted = {customer.key: customer.items for customer in customers}
        _await(lambda: wanted == self._counts(list(wanted)), seconds, "the lists of customers", LOOK_SECONDS)

    def _counts(self, keys: Sequence[str]) -> dict[str, int]:
        count = {"$project": {"count": {"$size": {"$ifNull": ["$orders", []]}}}}
        found = self._customers.aggregate([{"$match": {"_id": {"$in": keys}}}, count])
        return {each["_id"]: each["count"] for each in found}

    def size(self, key: str) -> int:
        """Give the bytes of a customer's document."""
        size = {"$project": {"size": {"$bsonSize": "$$ROOT"}}}
        (found,) = self._customers.aggregate([{"$match": {"_id": key}}, size])
        return int(found["size"])

    def commit(self, key: str, write: Callable[[], object]) -> Commit:
        """Write, and wait until the customer's document is another one."""
        since, before = self._newest(), self._at(key)
        began = time.perf_counter()
        write()
        _await(lambda: self._at(key) != before, SHOWN_SECONDS, f"a change of {key}")
        return Commit(time.perf_counter() - began, self._written(since))

    def _at(self, key: str) -> Timestamp | None:
        found = self._customers.find_one({"_id": key}, {"_src.at": 1, "_id": 0})
        return found["_src"]["at"] if found else None

    def _newest(self) -> Timestamp:
        (newest,) = self._history.find({}, {"ts": 1}).sort("$natural", -1).limit(1)
        at: Timestamp = newest["ts"]
        return at

    def _written(self, since: Timestamp) -> int:
        """Give the bytes of the transactions since then that changed the view."""
        query = {"ts": {"$gt": since}, "o.applyOps.ns": self._customers.full_name}
        size = {"$group": {"_id": None, "bytes": {"$sum": {"$bsonSize": "$$ROOT"}}}}
        return sum(int(each["bytes"]) for each in self._history.aggregate([{"$match": query}, size]))


def measure(client: MongoClient[Document], uri: str, side: Side, commits: int) -> Iterator[Cost]:
    """Load the customers, and change them one by one while a worker follows."""
    shop, raw = Shop(1), client[RAW]
    customers = [Customer(shop, raw, place, items) for place, items in enumerate((SHORT, *LENGTHS), start=1)]
    for customer in customers:
        customer.load()
    view = View(client, side.derived)
    command = process.python("-m", "distributary", "run")
    with process.running(command, side.environment(uri)) as pid:
        view.await_items(customers, READY_SECONDS)
        for customer in customers[1:]:
            yield from _costs(view, customer, customers[0], commits, pid)
        view.await_items(customers, SHOWN_SECONDS)


def _costs(view: View, customer: Customer, short: Customer, commits: int, worker: int) -> Iterator[Cost]:
    """Change a long list and the short one in turns."""
    document = view.size(customer.key)
    found: dict[tuple[str, str], list[Commit]] = {}
    for _ in range(WARM_UP + commits):
        for act in ACTS:
            for each in (customer, short):
                some = found.setdefault((each.key, act), [])
                some.append(view.commit(each.key, each.act(act)))
    for act in ACTS:
        long = found[customer.key, act][WARM_UP:]
        yield Cost(
            customer.items,
            act,
            commits,
            _middle(long),
            _middle(found[short.key, act][WARM_UP:]),
            document,
            int(median(each.history for each in long)),
            process.peak_mb(worker),
        )


def _middle(commits: Sequence[Commit]) -> float:
    return 1000 * median(each.seconds for each in commits)


def _await(condition: Callable[[], bool], seconds: float, what: str, pause: float = POLL_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what} did not come within {seconds:.0f} s.", "Look at the worker's log.")
        time.sleep(pause)
