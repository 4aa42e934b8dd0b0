"""What the hand-written contenders share: their arguments and what they tell the harness."""

import json
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from pymongo import MongoClient

from benchmarks.workload import Document, create_owner_indexes

#: How many changes a contender is told to stop after when it shall run until it is terminated.
ENDLESS = sys.maxsize


class Task(NamedTuple):
    """Tail the raw database from a resume token and stop after so many changes."""

    client: MongoClient[Document]
    token: str
    changes: int


def run(tail: Callable[[Task], None]) -> None:
    """Run a contender's loop as a program, `URI TOKEN CHANGES`; prints when it tailed (monotonic seconds)."""
    uri, token, changes = sys.argv[1:]
    client: MongoClient[Document] = MongoClient(uri)
    create_owner_indexes(client)
    started = time.monotonic()
    tail(Task(client, token, int(changes)))
    print(json.dumps({"started": started, "ended": time.monotonic()}))
