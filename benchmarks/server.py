"""A private mongod per run, started on a copy of a pre-loaded folder."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pymongo import MongoClient

from benchmarks.workload import Document
from distributary.embedded import EmbeddedMongo

CACHE_GB = 2


class Server(NamedTuple):
    """A running one-node replica set."""

    uri: str
    pid: int


class Template(NamedTuple):
    """A stopped server's folder, and the resume token from before its workload."""

    folder: Path
    token: str


@contextmanager
def serve(folder: Path, options: Sequence[str] = ()) -> Iterator[Server]:
    """Run a primary on the folder, with more options of `mongod`, and shut it down cleanly."""
    with EmbeddedMongo(folder, arguments=["--wiredTigerCacheSizeGB", str(CACHE_GB), *options]) as mongo:
        yield Server(mongo.uri, mongo.members[0].pid)


def prepare(folder: Path, load: Callable[[MongoClient[Document]], str]) -> Template:
    """Fill a new server with `load`, which returns the token to start at, and stop it."""
    with serve(folder) as server, MongoClient[Document](server.uri) as client:
        token = load(client)
        client.admin.command("fsync")
    return Template(folder, token)


@contextmanager
def fresh(template: Template, folder: Path) -> Iterator[Server]:
    """Run a server on a copy of the template and remove the copy afterwards."""
    shutil.copytree(template.folder, folder)
    try:
        with serve(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder)
