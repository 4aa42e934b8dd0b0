"""The source deployment: what it is, how far its history reaches, and whether its collections can be tailed."""

from collections.abc import Iterable, Mapping
from typing import Any

from bson import Timestamp
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure

from distributary.errors import ConfigurationError, EnvironmentFault, Fault
from distributary.state import SourceIdentity

_UNAUTHORIZED = 13


def hello(client: MongoClient[Any]) -> dict[str, Any]:
    """Ask the server what it is; refuses what has no change streams or was not tried."""
    reply = hello_of(client)
    if "setName" in reply:
        return reply
    if reply.get("msg") == "isdbgrid":
        raise EnvironmentFault(
            "The source is a sharded cluster, which this release does not tail.",
            "Use a replica set; see the README for what is planned.",
        )
    raise EnvironmentFault(
        "The source is a standalone server: it has no change streams.",
        "Start mongod with --replSet and run rs.initiate() once; one member is enough.",
    )


def identify(database: Database[Any]) -> SourceIdentity:
    """Say which deployment and database this is; the set's id needs the privilege `replSetGetConfig`."""
    name = hello(database.client)["setName"]
    try:
        config = database.client.admin.command("replSetGetConfig")["config"]
    except OperationFailure as error:
        if not is_denied(error):
            raise
        return SourceIdentity(name, None, database.name)
    return SourceIdentity(name, str(config["settings"]["replicaSetId"]), database.name)


def is_denied(error: OperationFailure) -> bool:
    """Whether the server says that the user may not do this."""
    return error.code == _UNAUTHORIZED


def head(client: MongoClient[Any]) -> Timestamp:
    """Give the cluster time of the newest operation that a majority has."""
    newest: Timestamp = hello(client)["lastWrite"]["majorityOpTime"]["ts"]
    return newest


def newest(client: MongoClient[Any]) -> Timestamp:
    """Give the cluster time of the newest operation, whether a majority has it or not."""
    time: Timestamp = hello(client)["lastWrite"]["opTime"]["ts"]
    return time


def oldest(client: MongoClient[Any]) -> Timestamp:
    """Give the cluster time of the oldest operation in the history; needs to read `local.oplog.rs`."""
    first = client.local["oplog.rs"].find_one({}, {"ts": 1}, sort=[("$natural", 1)])
    if first is None:
        raise EnvironmentFault("The source has no oplog.", "Wait until the replica set is initiated.")
    time: Timestamp = first["ts"]
    return time


def oldest_if_known(client: MongoClient[Any]) -> Timestamp | None:
    """Give the cluster time of the oldest operation in the history; None where the user may not see it."""
    try:
        return oldest(client)
    except (OperationFailure, EnvironmentFault):
        return None


def refuse_loop(raw: Database[Any], written: Mapping[str, Database[Any]]) -> None:
    """Refuse databases that are the source under whatever host names; `written` has them by their section."""
    for section, database in written.items():
        if database.name.lower() == raw.name.lower() and _process(database) == _process(raw):
            problem = "is the source database, reached by other host names: a loop."
            raise ConfigurationError([Fault(f"{section}.database", problem, "Name another database.")])


def _process(database: Database[Any]) -> Any:
    """Give the id that a server draws when it starts: that of the primary, whoever connects."""
    return hello_of(database.client).get("topologyVersion", {}).get("processId")


def hello_of(client: MongoClient[Any]) -> dict[str, Any]:
    """Ask any server what it is."""
    reply: dict[str, Any] = client.admin.command("hello")
    return reply


def refuse_unsuitable(database: Database[Any], sources: Iterable[str]) -> None:
    """Refuse source collections that have no change stream of documents, or that compare keys in their own way."""
    wanted = set(sources)
    for info in database.list_collections():
        if info["name"] in wanted:
            _refuse(info)


def _refuse(info: Mapping[str, Any]) -> None:
    name = info["name"]
    if info["type"] != "collection":
        raise EnvironmentFault(
            f"Source collection {name!r} is a {info['type']}: it has no change stream.",
            "Name the collection under the view, or copy the time series into an ordinary collection.",
        )
    if "collation" in info.get("options", {}):
        raise EnvironmentFault(
            f"Source collection {name!r} has a collation: it compares keys in its own way.",
            "Use a collection with the simple collation.",
        )
