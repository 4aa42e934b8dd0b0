"""A retail data set that is the same every time: customers, products and orders, and life among them.

The documents hang together as in a shop: orders name customers and products that exist, some customers
buy much more than others, and an order moves from `placed` to `delivered`. Dates count from a fixed day,
and what is written depends on the seed and on what the database holds, never on a clock.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from random import Random
from threading import Event
from typing import Any

from bson import Decimal128, Timestamp
from pymongo.client_session import ClientSession
from pymongo.database import Database

Document = dict[str, Any]

#: Documents at scale 1, in the order in which they are loaded.
SIZES = {"customers": 6_000, "products": 1_200, "orders": 16_000}

#: The first order of the data set is of this day, the last one of a year later.
FIRST_DAY = datetime(2025, 1, 1, 9, tzinfo=UTC)
YEAR = 365 * 24 * 60  # minutes

SEED = 20_250_101
BATCH = 2_000
NEXT_STATUS = {"placed": "paid", "paid": "shipped", "shipped": "delivered"}

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
_DEVICES = ("desktop", "mobile", "mobile", "tablet")
_BROWSERS = ("Chrome", "Edge", "Firefox", "Safari")
_BRANDS = ("Alder", "Birch & Co", "Cobalt", "Dune", "Ember", "Fjord", "Grove", "Harbor", "Isle", "Juniper")
_ADJECTIVES = (
    "Classic",
    "Compact",
    "Everyday",
    "Folding",
    "Light",
    "Little",
    "Organic",
    "Outdoor",
    "Soft",
    "Solid",
)
#: Category: its things, and the lowest and the highest price.
_CATEGORIES = {
    "Bags": (("Backpack", "Duffel", "Tote", "Wallet"), 19, 189),
    "Clothing": (("Jacket", "Jeans", "Scarf", "Shirt", "Sweater"), 9, 159),
    "Electronics": (("Charger", "Headphones", "Keyboard", "Lamp", "Speaker"), 15, 399),
    "Garden": (("Hose", "Planter", "Rake", "Watering Can"), 7, 99),
    "Kitchen": (("Bowl", "Kettle", "Knife", "Mug", "Pan"), 5, 149),
    "Sports": (("Ball", "Bottle", "Mat", "Racket", "Tent"), 6, 289),
}


def load(
    database: Database[Document], scale: float = 1.0, progress: Callable[[int, int], object] | None = None
) -> dict[str, int]:
    """Insert the data set and give the number of documents by collection.

    `scale` multiplies the 23,200 documents of the whole. The collections must be empty. `progress` is told
    after every batch how many documents lie in the database, of how many.
    """
    sizes = sizes_at(scale)
    loaded, whole = 0, sum(sizes.values())
    for name, documents in data_set(sizes):
        for batch in _batches(documents):
            database[name].insert_many(batch, ordered=False)
            loaded += len(batch)
            if progress:
                progress(loaded, whole)
    return sizes


def sizes_at(scale: float) -> dict[str, int]:
    """Give the number of documents by collection; at least ten of each."""
    return {name: max(10, round(size * scale)) for name, size in SIZES.items()}


def data_set(sizes: Mapping[str, int], seed: int = SEED) -> Iterator[tuple[str, Iterable[Document]]]:
    """Give the collections with their documents, made while they are read."""
    goods = [product(_random(seed, "product", number), number) for number in range(1, sizes["products"] + 1)]
    yield "customers", (customer(_random(seed, "customer", n), n) for n in range(1, sizes["customers"] + 1))
    yield "products", goods
    yield "orders", _past_orders(_random(seed, "orders"), sizes, goods)


def customer(rng: Random, number: int) -> Document:
    """Make a customer; one in three has no phone, and households share one."""
    given, family = rng.choice(_GIVEN), rng.choice(_FAMILY)
    made = {
        "_id": f"C{number:06}",
        "name": {"given": given, "family": family},
        "email": _email(given, family, number),
        "consent": rng.random() < 0.4,  # noqa: PLR2004 - a share
        "device": {"category": rng.choice(_DEVICES), "browser": rng.choice(_BROWSERS)},
        "geo": _geo(rng),
        "created_at": FIRST_DAY - timedelta(hours=rng.randrange(1, 20_000)),
    }
    return made if rng.randrange(3) == 0 else made | {"phone": f"+1-202-555-{rng.randrange(10_000):04}"}


def product(rng: Random, number: int) -> Document:
    """Make a product with a price that fits its category."""
    category = rng.choice(list(_CATEGORIES))
    things, low, high = _CATEGORIES[category]
    return {
        "_id": f"P{number:05}",
        "name": f"{rng.choice(_ADJECTIVES)} {rng.choice(things)}",
        "brand": rng.choice(_BRANDS),
        "category": category,
        "price": _money(rng.randrange(low, high) + 0.99),
        "stock": rng.randrange(500),
    }


def order(
    rng: Random, number: int, customer_id: str, goods: list[Document], ordered_at: datetime
) -> Document:
    """Make a new order of one to five different products."""
    count = min(1 + int(5 * rng.random() ** 2), len(goods))
    lines = [_line(rng, item) for item in rng.sample(goods, count)]
    return {
        "_id": number,
        "customer_id": customer_id,
        "ordered_at": ordered_at,
        "status": "placed",
        "lines": lines,
        "total": Decimal128(sum(line["price"].to_decimal() * line["quantity"] for line in lines)),
    }


def _past_orders(rng: Random, sizes: Mapping[str, int], goods: list[Document]) -> Iterator[Document]:
    """Make a year of orders; the older one is, the further it got."""
    count = sizes["orders"]
    for number in range(1, count + 1):
        buyer = f"C{_few(rng, sizes['customers']) + 1:06}"
        made = order(rng, number, buyer, goods, FIRST_DAY + timedelta(minutes=YEAR * number // count))
        yield made | {"status": _status_at_age(rng, (count - number) / count)}


def _status_at_age(rng: Random, age: float) -> str:
    if rng.randrange(20) == 0:
        return "cancelled"
    reached = int(age * 50 + rng.random() * 2)
    return ("placed", "paid", "shipped", "delivered")[min(reached, 3)]


def _line(rng: Random, item: Document) -> Document:
    shown = {name: item[name] for name in ("name", "brand", "category", "price")}
    return {"sku": item["_id"], **shown, "quantity": 1 + _few(rng, 4)}


def _geo(rng: Random) -> Document:
    city = rng.choice(list(_CITIES))
    return {"city": city, "country": _CITIES[city]}


def _email(given: str, family: str, number: int) -> str:
    return f"{given}.{family}{number}@example.com".lower()


def _money(amount: float) -> Decimal128:
    return Decimal128(Decimal(amount).quantize(Decimal("0.01")))


def _few(rng: Random, count: int, skew: int = 2) -> int:
    """Draw from `range(count)`, small numbers more often, the more so the higher `skew`."""
    return int(count * rng.random() ** skew)


def _random(seed: int, *what: object) -> Random:
    return Random(f"{seed} {what}")  # noqa: S311 - data, no secret


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    rest = iter(documents)
    while batch := list(islice(rest, BATCH)):
        yield batch


def live(
    database: Database[Document],
    seed: int,
    stop: Event,
    rate: float,
    wrote: Callable[[str, Timestamp], object] | None = None,
) -> dict[str, int]:
    """Keep the shop alive until `stop` is set: `rate` writes per second, one after the other.

    The data set must be loaded. `wrote` is told each write's operation and cluster time, in the thread of the
    caller, once the write is acknowledged. When the server cannot keep up, writes follow without a pause.
    Gives the number of writes by operation: insert, update, replace, delete.
    """
    counts: Counter[str] = Counter()
    with database.client.start_session() as session:
        shop = Shop(database, session, _random(seed, "live"))
        started = time.monotonic()
        while not stop.wait(max(0.0, started + counts.total() / rate - time.monotonic())):
            operation = shop.act()
            counts[operation] += 1
            if wrote and session.operation_time:
                wrote(operation, session.operation_time)
    return dict(counts)


class Shop:
    """What customers and staff do to the raw collections; every act is one write."""

    def __init__(self, database: Database[Document], session: ClientSession, rng: Random) -> None:
        self._database = database
        self._session = session
        self._rng = rng
        self._keys = {name: self._all_keys(name) for name in SIZES}
        self._goods = list(database["products"].find(session=session).sort("_id"))
        self._orders_ever = max(self._keys["orders"], default=0)
        self._customers_ever = len(self._keys["customers"])
        self._acts, self._weights = zip(*self._habits().items(), strict=True)

    def act(self) -> str:
        """Do one write and give its operation."""
        operation: str = self._rng.choices(self._acts, self._weights)[0]()
        return operation

    def _habits(self) -> dict[Callable[[], str], int]:
        """Give what happens in a shop, and how often in a hundred times."""
        return {
            self.place_order: 28,
            self.advance_order: 30,
            self.cancel_line: 8,
            self.cancel_order: 3,
            self.delete_order: 4,
            self.join: 5,
            self.change_email: 7,
            self.replace_profile: 6,
            self.leave: 1,
            self.reprice: 6,
            self.discontinue_or_return: 2,
        }

    def place_order(self) -> str:
        """Insert an order, a minute after the one before."""
        self._orders_ever += 1
        number = self._orders_ever
        ordered_at = FIRST_DAY + timedelta(minutes=YEAR + number)
        self._insert("orders", order(self._rng, number, self._any("customers"), self._goods, ordered_at))
        return "insert"

    def advance_order(self) -> str:
        """Take a recent order to its next status; one that has arrived gets a rating."""
        key = self._recent_order()
        status = self._read("orders", key)["status"]
        if status in NEXT_STATUS:
            return self._update("orders", key, {"$set": {"status": NEXT_STATUS[status]}})
        return self._update("orders", key, {"$set": {"rating": self._rng.randrange(1, 6)}})

    def cancel_line(self) -> str:
        """Cancel a line of a recent order, by a mark or by removing it."""
        key = self._recent_order()
        number = self._rng.randrange(len(self._read("orders", key)["lines"]) or 1)
        if number and self._rng.randrange(2):
            return self._update("orders", key, {"$pop": {"lines": 1}})
        return self._update("orders", key, {"$set": {f"lines.{number}.cancelled": True}})

    def cancel_order(self) -> str:
        """Cancel a recent order as a whole."""
        return self._update("orders", self._recent_order(), {"$set": {"status": "cancelled"}})

    def delete_order(self) -> str:
        """Delete an order, as when its time of retention is over."""
        return self._delete("orders")

    def join(self) -> str:
        """Insert a customer."""
        self._customers_ever += 1
        self._insert("customers", customer(self._rng, self._customers_ever))
        return "insert"

    def change_email(self) -> str:
        """Give a customer another e-mail address."""
        key = self._any("customers")
        address = _email(self._rng.choice(_GIVEN), self._rng.choice(_FAMILY), int(key[1:]))
        return self._update("customers", key, {"$set": {"email": address}})

    def replace_profile(self) -> str:
        """Replace a customer by what was filled into a form."""
        key = self._any("customers")
        form = customer(self._rng, int(key[1:]))
        self._database["customers"].replace_one({"_id": key}, form, session=self._session)
        return "replace"

    def leave(self) -> str:
        """Delete a customer; what was ordered stays."""
        return self._delete("customers")

    def reprice(self) -> str:
        """Give a product another price."""
        _, low, high = _CATEGORIES[self._rng.choice(list(_CATEGORIES))]
        change = {"$set": {"price": _money(self._rng.randrange(low, high) + 0.49)}}
        return self._update("products", self._any("products"), change)

    def discontinue_or_return(self) -> str:
        """Take a product out of the shop, or back into it."""
        gone = bool(self._rng.randrange(2))
        return self._update("products", self._any("products"), {"$set": {"discontinued": gone}})

    def _all_keys(self, collection: str) -> list[Any]:
        found = self._database[collection].find({}, {"_id": 1}, session=self._session).sort("_id")
        return [document["_id"] for document in found]

    def _any(self, collection: str) -> Any:
        return self._rng.choice(self._keys[collection])

    def _recent_order(self) -> Any:
        keys = self._keys["orders"]
        return keys[-1 - _few(self._rng, len(keys), skew=5)]

    def _read(self, collection: str, key: Any) -> Document:
        found = self._database[collection].find_one({"_id": key}, session=self._session)
        if found is None:
            raise LookupError(f"{collection} has no {key!r}: somebody else writes to the sample data.")
        return found

    def _insert(self, collection: str, document: Document) -> None:
        self._database[collection].insert_one(document, session=self._session)
        self._keys[collection].append(document["_id"])

    def _update(self, collection: str, key: Any, change: Document) -> str:
        """Change a document; its revision counts up, so that no update leaves it as it was."""
        counted = {**change, "$inc": {"revision": 1}}
        self._database[collection].update_one({"_id": key}, counted, session=self._session)
        return "update"

    def _delete(self, collection: str) -> str:
        keys = self._keys[collection]
        key = keys.pop(self._rng.randrange(len(keys)))
        self._database[collection].delete_one({"_id": key}, session=self._session)
        return "delete"
