"""Offers raw operations at a steady rate, each with its time of sending: `URI RATE SECONDS`.

Every few milliseconds it sends what is due, in bulk, so that the rate holds on a busy machine, and with the
server's default write concern, as applications do. Prints how many it sent, at which rate, and the stamp of the
last one, as JSON.
"""

import json
import sys
import time

from pymongo import MongoClient

from benchmarks.workload import RAW, SOURCE, Document, Operation, Orders, apply

TICK_SECONDS = 0.005


def main() -> None:
    """Send the operations as they become due."""
    uri, rate, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    client: MongoClient[Document] = MongoClient(uri)
    operations = list(Orders().operations(rate * seconds, deletes=False))
    started = time.monotonic()
    sent = last = 0
    while sent < len(operations):
        due = int((time.monotonic() - started) * rate)
        stamped = [_stamped(operation) for operation in operations[sent:due]]
        apply(stamped, client[RAW][SOURCE])
        if stamped:
            last = _stamp(stamped[-1])
        sent += len(stamped)
        time.sleep(TICK_SECONDS)
    took = time.monotonic() - started
    print(json.dumps({"sent": sent, "rate": sent / took, "last": last}))


def _stamped(operation: Operation) -> Operation:
    return operation._replace(document={**(operation.document or {}), "sent": time.monotonic_ns()})


def _stamp(operation: Operation) -> int:
    assert operation.document
    return int(operation.document["sent"])


if __name__ == "__main__":
    main()
