"""The textbook loop: `watch()` with `updateLookup`, one write per derived document, driver defaults."""

from itertools import islice

from benchmarks.contender import Task, run
from benchmarks.workload import DERIVED, OWNERS, RAW, Document, fan_out


def tail(task: Task) -> None:
    """Handle one change after another."""
    resume = {"_data": task.token}
    with task.client[RAW].watch(full_document="updateLookup", start_after=resume) as stream:
        for change in islice(stream, task.changes):
            handle(task, change)


def handle(task: Task, change: Document) -> None:
    """Remove what the order derived before, unless it is new, and write what it derives now."""
    derived = task.client[DERIVED]
    if change["operationType"] != "insert":
        for collection, owner in OWNERS.items():
            derived[collection].delete_many({owner: change["documentKey"]["_id"]})
    order = change.get("fullDocument")
    for collection, document in fan_out(order) if order else ():
        derived[collection].replace_one({"_id": document["_id"]}, document, upsert=True)


if __name__ == "__main__":
    run(tail)
