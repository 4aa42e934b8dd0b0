"""A retail data set that is the same every time: users, products, orders and clicks, and life among them.

The documents hang together as in a shop: orders and clicks name users and products that exist, some users buy much
more than others, an order moves from `placed` to `delivered`, and one in four is made in a session whose clicks are
there, too. Field names are those of Google's and MongoDB's e-commerce reference. As from real systems, documents come
late, out of order and with mistakes that are corrected, some users have two accounts until they are merged, some
clicks have no user, fields are missing, quantities are text now and then, and addresses, phone numbers and cities come
in several spellings. Dates count from a fixed day, and what is written depends on the seed and on what the database
holds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from itertools import chain, count, islice
from random import Random
from typing import Any, NamedTuple

from bson import Decimal128, Timestamp
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.sample import people, writing
from distributary.sample.dirt import Customers, incomplete, spelled
from distributary.sample.people import FIRST_DAY, SEED, Document, chance, few, money
from distributary.sample.writing import Acting, Chapter, keep_writing, tell

#: Documents at scale 1, in the order in which they are loaded.
SIZES = {"users": 4_000, "products": 800, "orders": 6_400, "clickstream": 12_000}

#: Orders and sessions are spread over the year after the first day.
YEAR = 365 * 24 * 60  # minutes

#: Whose orders and clicks are.
CUSTOMERS = Customers("users", {"orders": "userId", "clickstream": "userId"})

NEXT_STATUS = {"placed": "paid", "paid": "shipped", "shipped": "delivered"}

#: One order in so many is made in a session of the web shop, whose clicks are known.
ONLINE = 4

_DEVICES = ("desktop", "mobile", "mobile", "tablet")
_BROWSERS = ("Chrome", "Edge", "Firefox", "Safari")
_BRANDS = ("Alder", "Birch & Co", "Cobalt", "Dune", "Ember", "Fjord", "Grove", "Harbor", "Isle", "Juniper")
# fmt: off
_ADJECTIVES = (
    "Classic", "Compact", "Everyday", "Folding", "Light", "Little", "Organic", "Outdoor", "Soft", "Solid",
)
# fmt: on
#: Category: its things, and the lowest and the highest price.
_CATEGORIES = {
    "Bags": (("Backpack", "Duffel", "Tote", "Wallet"), 19, 189),
    "Clothing": (("Jacket", "Jeans", "Scarf", "Shirt", "Sweater"), 9, 159),
    "Electronics": (("Charger", "Headphones", "Keyboard", "Lamp", "Speaker"), 15, 399),
    "Garden": (("Hose", "Planter", "Rake", "Watering Can"), 7, 99),
    "Kitchen": (("Bowl", "Kettle", "Knife", "Mug", "Pan"), 5, 149),
    "Sports": (("Ball", "Bottle", "Mat", "Racket", "Tent"), 6, 289),
}
_TRAFFIC = ("direct", "newsletter", "partner", "search")
_CLICKS = ("page_view", "view_item", "view_item", "add_to_cart", "search")


def sizes_at(scale: float) -> dict[str, int]:
    """Give the number of documents by collection; at least ten of each."""
    return {name: max(10, round(size * scale)) for name, size in SIZES.items()}


def data_set(sizes: Mapping[str, int], seed: int = SEED) -> Iterator[tuple[str, Iterable[Document]]]:
    """Give the collections with their documents as they are in the end, made while they are read."""
    goods = [product(chance(seed, "product", number), number) for number in range(1, sizes["products"] + 1)]
    yield "users", (entered_user(chance(seed, "user", n), n) for n in range(1, sizes["users"] + 1))
    yield "products", goods
    yield "orders", _past_orders(seed, sizes, goods)
    yield "clickstream", _past_clicks(seed, sizes, goods)


# --- the documents ------------------------------------------------------------------------------------------


def entered_user(rng: Random, number: int) -> Document:
    """Make a user as people fill in forms: in several spellings, and not all of it."""
    return incomplete(rng, spelled(rng, user(rng, number)), ("name", "consent", "device", "geo", "createdAt"))


def user(rng: Random, number: int) -> Document:
    """Make a user; one in three has no phone."""
    name = people.name(rng)
    made = {
        "_id": f"U{number:06}",
        "name": name,
        "email": people.email(name, number),
        "consent": rng.random() < 0.4,  # noqa: PLR2004 - a share
        "device": {"category": rng.choice(_DEVICES), "browser": rng.choice(_BROWSERS)},
        "geo": people.place(rng),
        "createdAt": FIRST_DAY - timedelta(hours=rng.randrange(1, 20_000)),
    }
    return made if rng.randrange(3) == 0 else made | {"phone": people.phone(rng)}


def product(rng: Random, number: int) -> Document:
    """Make a product with a price that fits its category."""
    category = rng.choice(list(_CATEGORIES))
    things, low, high = _CATEGORIES[category]
    return {
        "_id": f"P{number:05}",
        "productName": f"{rng.choice(_ADJECTIVES)} {rng.choice(things)}",
        "brand": rng.choice(_BRANDS),
        "category": category,
        "price": money(rng.randrange(low, high) + 0.99),
        "stock": rng.randrange(500),
    }


def order(rng: Random, number: int, buyer: str, goods: list[Document], at: datetime) -> Document:
    """Make a new order of one to five different products."""
    lines = [_line(rng, item) for item in rng.sample(goods, min(1 + int(5 * rng.random() ** 2), len(goods)))]
    return {
        "_id": number,
        "userId": buyer,
        "orderDate": at,
        "status": "placed",
        "lineItems": lines,
        "orderTotal": Decimal128(sum(line["price"].to_decimal() * int(line["quantity"]) for line in lines)),
        "itemQuantity": sum(int(line["quantity"]) for line in lines),
        "uniqueItemsQuantity": len(lines),
    }


class Session(NamedTuple):
    """One visit to the web shop; nobody has signed in when there is no user."""

    key: str
    user: str | None
    started: datetime

    def click(self, rng: Random, number: int, goods: list[Document]) -> Document:
        """Make the click of this number; the first one starts the session."""
        name = rng.choice(_CLICKS) if number else "session_start"
        made = {
            "_id": f"{self.key}-{number}",
            "gaSessionId": self.key,
            "eventName": name,
            "eventTimestamp": self.started + timedelta(seconds=40 * number + rng.randrange(40)),
            "eventBundleSequenceId": number,
            "engagementTimeMsec": rng.randrange(60_000) if number else 0,
        }
        whose = {"userId": self.user} if self.user else {}
        return made | whose | _about(rng, name, goods)


def _about(rng: Random, click: str, goods: list[Document]) -> Document:
    if click == "session_start":
        return {"trafficSource": rng.choice(_TRAFFIC)}
    return _seen(rng.choice(goods)) if click in ("view_item", "add_to_cart") else {}


def _seen(item: Document) -> Document:
    shown = {name: item[name] for name in ("productName", "brand", "category", "price")}
    return {"productId": item["_id"], **shown}


def _line(rng: Random, item: Document) -> Document:
    quantity = 1 + few(rng, 4)
    return {**_seen(item), "quantity": quantity if rng.randrange(10) else str(quantity)}


# --- the year that has passed -------------------------------------------------------------------------------


def _past_orders(seed: int, sizes: Mapping[str, int], goods: list[Document]) -> Iterator[Document]:
    """Make a year of orders; the older one is, the further it got."""
    rng, last = chance(seed, "orders"), sizes["orders"]
    for number in range(1, last + 1):
        buyer, at = _purchase(seed, sizes, number)
        made = order(rng, number, buyer, goods, at)
        session = {} if number % ONLINE else {"gaSessionId": f"S{number:07}"}
        yield made | session | {"status": _status_at_age(rng, (last - number) / last)}


def _past_clicks(seed: int, sizes: Mapping[str, int], goods: list[Document]) -> Iterator[Document]:
    """Make as many clicks as are asked for: first of the sessions that ended with an order, then of the others."""
    rng = chance(seed, "clickstream")
    sessions = chain(_buying(seed, sizes), _looking(rng, sizes))
    clicks = (session.click(rng, number, goods) for session in sessions for number in range(2 + few(rng, 6)))
    return islice(clicks, sizes["clickstream"])


def _buying(seed: int, sizes: Mapping[str, int]) -> Iterator[Session]:
    for number in range(ONLINE, sizes["orders"] + 1, ONLINE):
        buyer, at = _purchase(seed, sizes, number)
        yield Session(f"S{number:07}", buyer, at - timedelta(minutes=5))


def _looking(rng: Random, sizes: Mapping[str, int]) -> Iterator[Session]:
    for number in count(1):
        visitor = _user_key(few(rng, sizes["users"]) + 1) if rng.randrange(5) else None
        yield Session(f"L{number:07}", visitor, FIRST_DAY + timedelta(minutes=rng.randrange(YEAR)))


def _purchase(seed: int, sizes: Mapping[str, int], number: int) -> tuple[str, datetime]:
    """Tell who placed an order, and when."""
    buyer = _user_key(few(chance(seed, "purchase", number), sizes["users"]) + 1)
    return buyer, FIRST_DAY + timedelta(minutes=YEAR * number // sizes["orders"])


def _user_key(number: int) -> str:
    return f"U{number:06}"


def _status_at_age(rng: Random, age: float) -> str:
    if rng.randrange(20) == 0:
        return "cancelled"
    reached = int(age * 30 + rng.random() * 2)
    return ("placed", "paid", "shipped", "delivered")[min(reached, 3)]


# --- one user's day -----------------------------------------------------------------------------------------


#: Orders that were not cancelled.
STANDS: Mapping[str, Any] = {"status": {"$ne": "cancelled"}}


def somebody(database: Database[Document]) -> str:
    """Give the key of a user to tell a story about: one who ordered lately and has a few orders, if there is."""
    newest = [
        each["userId"] for each in database["orders"].find(STANDS, {"userId": 1}).sort("_id", -1).limit(100)
    ]
    few_orders = (key for key in newest if 1 < database["orders"].count_documents({"userId": key}) < 5)  # noqa: PLR2004
    return str(next(few_orders, newest[0]))


def story(database: Database[Document], key: str) -> Iterator[tuple[str, Timestamp]]:
    """Let a user have a day, one write after the other; give what each was, and its cluster time.

    The user visits the shop and orders, has another e-mail address, the order before is cancelled, and an order that
    was placed under another account is moved to this one.
    """
    return tell(database, lambda session: _chapters(database, session, key))


def _chapters(database: Database[Document], session: ClientSession, key: str) -> Iterator[Chapter]:
    orders, rng = database["orders"], chance(SEED, "story", key)
    goods = list(database["products"].find(session=session).sort("_id"))
    last = orders.find_one({"userId": key, **STANDS}, sort=[("_id", -1)], session=session)
    newest = orders.find_one({}, sort=[("_id", -1)], session=session)
    others = orders.find_one({"userId": {"$ne": key}}, sort=[("_id", -1)], session=session)
    number = newest["_id"] + 1 if newest else 1
    visit = Session(f"S{number:07}", key, FIRST_DAY + timedelta(minutes=YEAR + number))
    click = visit.click(rng, 0, goods)
    bought = order(rng, number, key, goods, visit.started + timedelta(minutes=4))
    bought["gaSessionId"] = visit.key
    address = people.email(people.name(rng), number)

    yield "visits the shop", lambda: database["clickstream"].insert_one(click, session=session)
    yield f"places order {number}", lambda: orders.insert_one(bought, session=session)
    yield (
        f"has a new e-mail address, {address}",
        lambda: database["users"].update_one({"_id": key}, {"$set": {"email": address}}, session=session),
    )
    if last:
        yield (
            f"cancels order {last['_id']}",
            lambda: orders.update_one(
                {"_id": last["_id"]}, {"$set": {"status": "cancelled"}}, session=session
            ),
        )
    if others:
        yield (
            f"takes over order {others['_id']} from {others['userId']}",
            lambda: orders.update_one({"_id": others["_id"]}, {"$set": {"userId": key}}, session=session),
        )


# --- life ---------------------------------------------------------------------------------------------------


class Shop(Acting):
    """What users and staff do to the raw collections; every act is one write."""

    def __init__(self, database: Database[Document], session: ClientSession, rng: Random) -> None:
        super().__init__(database, session, rng, SIZES)
        self._goods = list(database["products"].find(session=session).sort("_id"))
        self._orders_ever = max(self.keys["orders"], default=0)
        self._users_ever = len(self.keys["users"])
        self._visit: Session | None = None
        self._visits = self._clicks = 0

    def habits(self) -> dict[Callable[[], str], int]:
        """Give what happens in a shop, and how often in a hundred times."""
        return {
            self.click: 10,
            self.visit: 5,
            self.correct_click: 2,
            self.forget_click: 2,
            self.place_order: 20,
            self.advance_order: 24,
            self.cancel_line: 6,
            self.cancel_order: 3,
            self.take_over_order: 3,
            self.merge_accounts: 4,
            self.delete_order: 3,
            self.join: 3,
            self.change_email: 5,
            self.replace_profile: 4,
            self.leave: 1,
            self.reprice: 4,
            self.discontinue_or_return: 1,
        }

    def visit(self) -> str:
        """Let somebody come into the web shop, signed in or not."""
        self._visits += 1
        user = self.any_of("users") if self.rng.randrange(5) else None
        self._visit, self._clicks = Session(f"V{self._visits:07}", user, self._now()), 0
        return self.click()

    def click(self) -> str:
        """Insert the next click of the last visit."""
        if self._visit is None:
            return self.visit()
        self.insert("clickstream", self._visit.click(self.rng, self._clicks, self._goods))
        self._clicks += 1
        return "insert"

    def correct_click(self) -> str:
        """Measure anew how long somebody looked at a page."""
        change = {"$set": {"engagementTimeMsec": self.rng.randrange(90_000)}}
        return self.update("clickstream", self.any_of("clickstream"), change)

    def forget_click(self) -> str:
        """Delete a click, as when its time of retention is over."""
        return self.delete("clickstream")

    def place_order(self) -> str:
        """Insert an order, a minute after the one before; some belong to the last visit."""
        self._orders_ever += 1
        visit = self._visit if self.rng.randrange(2) else None
        buyer = visit.user if visit and visit.user else self.any_of("users")
        made = order(self.rng, self._orders_ever, buyer, self._goods, self._now())
        self.insert("orders", made | ({"gaSessionId": visit.key} if visit else {}))
        return "insert"

    def advance_order(self) -> str:
        """Take a recent order to its next status; one that has arrived gets a rating."""
        key = self.recent("orders")
        status = self.read("orders", key)["status"]
        if status in NEXT_STATUS:
            return self.update("orders", key, {"$set": {"status": NEXT_STATUS[status]}})
        return self.update("orders", key, {"$set": {"rating": self.rng.randrange(1, 6)}})

    def cancel_line(self) -> str:
        """Cancel a line of a recent order, by a mark or by removing it."""
        key = self.recent("orders")
        number = self.rng.randrange(len(self.read("orders", key)["lineItems"]) or 1)
        if number and self.rng.randrange(2):
            return self.update("orders", key, {"$pop": {"lineItems": 1}})
        return self.update("orders", key, {"$set": {f"lineItems.{number}.cancelled": True}})

    def cancel_order(self) -> str:
        """Cancel a recent order as a whole."""
        return self.update("orders", self.recent("orders"), {"$set": {"status": "cancelled"}})

    def take_over_order(self) -> str:
        """Move a recent order to another user, who paid for it."""
        return self.update("orders", self.recent("orders"), {"$set": {"userId": self.any_of("users")}})

    def merge_accounts(self) -> str:
        """Go on making one of two accounts."""
        return self.merge(CUSTOMERS)

    def delete_order(self) -> str:
        """Delete an order, as when its time of retention is over."""
        return self.delete("orders")

    def join(self) -> str:
        """Insert a user."""
        self._users_ever += 1
        return self.insert("users", entered_user(self.rng, self._users_ever))

    def change_email(self) -> str:
        """Give a user another e-mail address."""
        key = self.any_of("users")
        address = people.email(people.name(self.rng), int(key[1:]))
        return self.update("users", key, {"$set": {"email": address}})

    def replace_profile(self) -> str:
        """Replace a user by what was filled into a form."""
        key = self.any_of("users")
        return self.replace("users", entered_user(self.rng, int(key[1:])))

    def leave(self) -> str:
        """Delete a user; what was ordered stays."""
        return self.delete("users")

    def reprice(self) -> str:
        """Give a product another price."""
        _, low, high = _CATEGORIES[self.rng.choice(list(_CATEGORIES))]
        change = {"$set": {"price": money(self.rng.randrange(low, high) + 0.49)}}
        return self.update("products", self.any_of("products"), change)

    def discontinue_or_return(self) -> str:
        """Take a product out of the shop, or back into it."""
        gone = bool(self.rng.randrange(2))
        return self.update("products", self.any_of("products"), {"$set": {"discontinued": gone}})

    def _now(self) -> datetime:
        """Give the shop's time, which passes by a minute with every order."""
        return FIRST_DAY + timedelta(minutes=YEAR + self._orders_ever)


#: Inserts the data set, see `writing.load`.
load = partial(writing.load, sizes_at, data_set, CUSTOMERS)

#: Keeps the shop alive, see `keep_writing`.
live = partial(keep_writing, Shop)
