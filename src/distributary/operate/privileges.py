"""What the users of the source and of the derived deployment must be allowed, and what they are allowed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from pymongo import MongoClient


class Role(StrEnum):
    """What a privilege is needed on."""

    SOURCE = "source"
    DERIVED = "derived"
    STATE = "state"
    OPLOG = "oplog"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Need:
    """Actions that a worker takes; without those that are `optional` only what `purpose` says is missing.

    `whole`: on the database, not on the collections of it that are known: for actions on a database, and for
    collections whose names are made at run time.
    """

    role: Role
    actions: tuple[str, ...]
    purpose: str
    optional: bool = False
    whole: bool = False


_WRITER = ("find", "insert", "update", "remove", "createCollection", "createIndex")
_SWAPPER = ("listIndexes", "dropCollection", "renameCollectionSameDB")

#: Every privilege that is asked for. On `source` they are needed on the database as a whole (a change stream
#: of a database demands it), and on `state`, where collections of parts are made as shared records come.
NEEDS = (
    Need(Role.SOURCE, ("find", "changeStream"), "tail the change stream and read documents"),
    Need(Role.SOURCE, ("listCollections",), "see whether the source collections can be tailed", whole=True),
    Need(Role.CLUSTER, ("replSetGetConfig",), "tell the source from a copy of it", optional=True),
    Need(Role.OPLOG, ("find",), "see how far the history reaches", optional=True),
    Need(Role.DERIVED, _WRITER, "write derived records and create their collections and indexes"),
    Need(Role.DERIVED, ("listCollections",), "see whether the derived collections are suitable", whole=True),
    Need(Role.DERIVED, ("listIndexes",), "find the index of a rollup by several fields", optional=True),
    Need(
        Role.DERIVED,
        (*_WRITER, *_SWAPPER),
        "rebuild derived collections in others, whose names are drawn",
        optional=True,
        whole=True,
    ),
    Need(
        Role.STATE,
        _WRITER,
        "keep checkpoints, leases, the word of processes, dead letters, jobs, parts of shared records, pending"
        " groups and the outbox",
        whole=True,
    ),
    Need(Role.STATE, ("listCollections",), "see the parts of shared records", whole=True),
    Need(Role.STATE, _SWAPPER, "rebuild shared records", optional=True, whole=True),
)

#: What `check --fix` needs besides.
FIXES = (Need(Role.SOURCE, ("collMod",), "switch on images for triggers with `check --fix`", optional=True),)

#: Databases that a privilege on all databases does not reach. Source: "Resource Document" of the manual.
_APART = frozenset({"local", "config"})

Privilege = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """A resource: a database and in it a collection, or "" for all of them; without a database the cluster."""

    database: str
    collection: str = ""

    def __str__(self) -> str:
        if not self.database:
            return "the cluster"
        return f"{self.database}.{self.collection}" if self.collection else f"database {self.database}"

    @property
    def resource(self) -> dict[str, Any]:
        """The resource as the server writes it."""
        if not self.database:
            return {"cluster": True}
        return {"db": self.database, "collection": self.collection}


@dataclass(frozen=True, slots=True)
class Grants:
    """What a connection's users may do; `privileges` is None where the server asks nobody."""

    users: tuple[str, ...]
    privileges: Sequence[Privilege] | None

    def missing(self, actions: Iterable[str], place: Place) -> list[str]:
        """Give the actions that are not allowed on a place."""
        if self.privileges is None:
            return []
        allowed = {
            action
            for each in self.privileges
            if _covers(each["resource"], place)
            for action in each["actions"]
        }
        return [action for action in actions if action not in allowed and "anyAction" not in allowed]


def _covers(resource: Mapping[str, Any], place: Place) -> bool:
    if resource.get("anyResource"):
        return True
    if not place.database:
        return bool(resource.get("cluster"))
    if "collection" not in resource:
        return False
    database, collection = resource["db"], resource["collection"]
    if collection not in {"", place.collection}:
        return False
    return bool(
        database == place.database or (database == "" and (collection or place.database not in _APART))
    )


def granted(client: MongoClient[Any], database: str) -> Grants:
    """Ask what the connection may do; a server that demands no user allows everything.

    Raises the server's error when it demands a user and the connection string names none.
    """
    info = client.admin.command("connectionStatus", showPrivileges=True)["authInfo"]
    users = tuple(f"{each['user']}@{each['db']}" for each in info["authenticatedUsers"])
    if users:
        return Grants(users, info["authenticatedUserPrivileges"])
    client[database].command("listCollections", nameOnly=True)
    return Grants((), None)


class Lack(NamedTuple):
    """A need that is not met: the actions that are not allowed, and where."""

    need: Need
    actions: list[str]
    places: list[Place]


def lacks(grants: Grants, where: Mapping[Role, Sequence[Place]]) -> Iterator[Lack]:
    """Give the needs that are not met; `where` says which places each role is about."""
    for need in NEEDS:
        places = where.get(need.role, ())
        if need.whole:
            places = [Place(name) for name in dict.fromkeys(place.database for place in places)]
        lacking = {place: missing for place in places if (missing := grants.missing(need.actions, place))}
        if lacking:
            actions = [action for action in need.actions if any(action in each for each in lacking.values())]
            yield Lack(need, actions, list(lacking))
