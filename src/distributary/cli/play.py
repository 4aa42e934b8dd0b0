"""What the demo can show: a domain's sample data, its transform modules, and the questions that are asked."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from bson import Timestamp
from pymongo import MongoClient
from pymongo.database import Database

from distributary.cli.stage import DERIVED
from distributary.sample import insurance, insurance_life, retail

#: How many records an answer shows.
ANSWERS = 3

Document = dict[str, Any]


class Query(NamedTuple):
    """A question to a derived collection, in the terms of MongoDB's `find`."""

    question: str
    collection: str
    filter: dict[str, Any]
    sort: str
    direction: int

    @property
    def shell(self) -> str:
        """As it is typed into mongosh."""
        order = json.dumps({self.sort: self.direction})
        return f"db.{self.collection}.find({json.dumps(self.filter)}).sort({order}).limit({ANSWERS})"

    def ask(self, client: MongoClient[dict[str, Any]]) -> list[dict[str, Any]]:
        """Give the answer."""
        found = client[DERIVED][self.collection].find(self.filter, {"_src": False})
        return list(found.sort(self.sort, self.direction).limit(ANSWERS))


class Sample(Protocol):
    """A module with a domain's sample data."""

    def sizes_at(self, scale: float, /) -> dict[str, int]:
        """Give the number of documents by collection; scale 1 is the whole."""

    @property
    def load(self) -> Callable[..., dict[str, int]]:
        """Inserts the sample data, see `sample.writing.load`."""

    def somebody(self, database: Database[Document], /) -> str:
        """Give the key of a customer to tell a story about."""

    def story(self, database: Database[Document], key: str, /) -> Iterator[tuple[str, Timestamp]]:
        """Let a customer have a day, write by write."""

    @property
    def live(self) -> Callable[..., dict[str, int]]:
        """Writes until it is told to stop, see `sample.writing.keep_writing`."""


@dataclass(frozen=True)
class Play:
    """A domain: `folder` of its modules below the examples, and `topic` of its events if any."""

    folder: str
    only: tuple[str, ...]
    sample: Sample
    queries: tuple[Query, ...]
    topic: str | None = None


_RETAIL = Play(
    folder="",
    only=tuple(retail.SIZES),
    sample=retail,
    queries=(
        Query(
            "What did customer U000001 order last?",
            "orders_by_customer",
            {"customer_id": "U000001"},
            "ordered_at",
            -1,
        ),
        Query("Which orders wait longest to be shipped?", "open_orders", {}, "ordered_at", 1),
    ),
)

_INSURANCE = Play(
    folder="insurance",
    only=(*insurance.SIZES, "drop_offs"),
    sample=insurance_life,
    queries=(
        Query("Which customers were active last, and with what?", "customer_activity", {}, "last_at", -1),
        Query("Whom would a campaign reach, and how many?", "audience_size", {}, "people", -1),
    ),
    topic="drop-offs",
)

PLAYS: Mapping[str, Play] = {"retail": _RETAIL, "insurance": _INSURANCE}
