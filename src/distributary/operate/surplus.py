"""What users may do that nobody needs, by the role that allows it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pymongo import MongoClient
from pymongo.errors import OperationFailure

from distributary.operate.privileges import FIXES, NEEDS, Place, Privilege, Role

#: What `find` lets a user see anyhow: the rest of the built-in role `read`.
_READER = (
    "changeStream", "collStats", "dbHash", "dbStats", "find", "indexStats", "killCursors", "listCollections",
    "listIndexes", "planCacheRead",
)  # fmt: skip

#: The rest of `readWrite`: no more harm than `remove` and `dropCollection` can do.
_OWNER = (
    *_READER, "compactStructuredEncryptionData", "cleanupStructuredEncryptionData", "convertToCapped", "dropIndex",
    "emptycapped", "insert", "remove", "renameCollectionSameDB", "update", "createCollection", "createIndex",
    "dropCollection",
)  # fmt: skip

#: Actions that nobody needs and that are let pass, so that the built-in roles on these databases will do.
_LET_PASS: Mapping[Role, Sequence[str]] = {
    Role.SOURCE: _READER,
    Role.DERIVED: _OWNER,
    Role.STATE: _OWNER,
}

#: Actions that a message names before others.
_TELLING = frozenset({"anyAction", "find", "insert", "update", "remove", "createUser", "grantRole"})

#: Actions and places that a message names, at most.
_NAMED = 6

Where = Mapping[Role, Place]


class Surplus(NamedTuple):
    """What a role allows beyond what is needed: the actions by a name of the place."""

    role: str
    actions: Mapping[str, Sequence[str]]

    def __str__(self) -> str:
        return _some([f"{_some(each)} on {place}" for place, each in self.actions.items()], "; ")


def surplus(client: MongoClient[Any], where: Where) -> list[Surplus]:
    """Give what the connection's users may do beyond what is needed at these places, for each role of theirs.

    Where the server does not tell what a role allows, all roles are told as one.
    """
    info = client.admin.command("connectionStatus", showPrivileges=True)["authInfo"]
    whole = _beyond(info["authenticatedUserPrivileges"], where)
    if not whole:
        return []
    named = {_name(each): _privileges(client, each) for each in info["authenticatedUserRoles"]}
    found = [Surplus(name, beyond) for name, granted in named.items() if (beyond := _beyond(granted, where))]
    return found or [Surplus(", ".join(named), whole)]


def _name(role: Mapping[str, str]) -> str:
    return f"{role['role']}@{role['db']}"


def _privileges(client: MongoClient[Any], role: Mapping[str, str]) -> Sequence[Privilege]:
    """Ask what a role allows; nothing for one that another one brings, which a user may not look at."""
    try:
        (found,) = client.admin.command("rolesInfo", dict(role), showPrivileges=True)["roles"]
    except (OperationFailure, ValueError):
        return []
    privileges: Sequence[Privilege] = found["inheritedPrivileges"]
    return privileges


def _beyond(granted: Iterable[Privilege], where: Where) -> dict[str, list[str]]:
    """Give the actions that are neither needed nor let pass, by their place; where there are most comes first."""
    beyond: dict[str, list[str]] = {}
    for each in granted:
        fine = set(_fine(each["resource"], where))
        if actions := [action for action in each["actions"] if action not in fine]:
            beyond.setdefault(_called(each["resource"]), []).extend(actions)
    places = sorted(beyond, key=lambda place: (-len(beyond[place]), place))
    return {place: sorted(set(beyond[place]), key=_weight) for place in places}


def _weight(action: str) -> tuple[bool, str]:
    return action not in _TELLING, action


def _fine(resource: Mapping[str, Any], where: Where) -> Iterator[str]:
    for role in (role for role, place in where.items() if _within(resource, place)):
        yield from _LET_PASS.get(role, ())
        for need in (*NEEDS, *FIXES):
            yield from need.actions if need.role is role else ()


def _within(resource: Mapping[str, Any], place: Place) -> bool:
    """Tell whether a resource is a place or a part of it."""
    if not place.database:
        return bool(resource.get("cluster"))
    return resource.get("db") == place.database and place.collection in {"", resource.get("collection")}


def _called(resource: Mapping[str, Any]) -> str:
    """Give what an operator calls a resource."""
    if resource.get("anyResource"):
        return "everything"
    if resource.get("cluster"):
        return "the cluster"
    database = f"database {resource['db']}" if resource.get("db") else "every database"
    if "system_buckets" in resource:
        return f"the time series of {database}"
    if resource["collection"] in {"", "system.js"}:  # the built-in roles have both
        return database
    return f"{resource['collection']} in {database}"


def _some(texts: Sequence[str], between: str = ", ") -> str:
    more = len(texts) - _NAMED
    return between.join([*texts[:_NAMED], *([f"{more} more"] if more > 0 else [])])
