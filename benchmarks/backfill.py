"""`python benchmarks/backfill.py`: how fast existing documents are derived, beside what the server can do.

Many small documents are made by the server itself. In each round they are scanned, then as many records of the same
shape are written in bulk with plain inserts, and then a worker backfills them, one after the other on the same server.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import click
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from benchmarks import process
from benchmarks.report import Stolen
from benchmarks.server import serve

RAW, DERIVED, SOURCE = "raw", "derived", "orders"
RUN_SECONDS = 7200.0

#: Documents in one bulk write, and that the server makes of one seed.
BULK, PER_SEED = 5000, 1000

MODULE = """
from distributary import DerivedCollection, transform

by_customer = DerivedCollection("orders_by_customer", indexes=["customer"])

@transform("orders")
def orders(order):
    yield by_customer.record(order["_id"], {"customer": order["customer"], "total": order["total"]})
"""

Client = MongoClient[dict[str, Any]]


@dataclass(frozen=True)
class Round:
    """Documents per second of a bare scan, a bare bulk write and a backfill; its peak in MB, and what is wrong."""

    scan: float
    write: float
    backfill: float
    peak_mb: float
    wrong: int


def fill(client: Client, count: int) -> None:
    """Let the server make so many documents."""
    seeds = client[RAW]["seeds"]
    seeds.insert_many([{"_id": number} for number in range(count // PER_SEED)])
    number = {"$add": [{"$multiply": ["$_id", PER_SEED]}, "$part"]}
    stages: list[dict[str, Any]] = [
        {"$project": {"part": {"$range": [0, PER_SEED]}}},
        {"$unwind": "$part"},
        {"$project": {"_id": number, "customer": {"$mod": [number, 1000]}, "total": {"$mod": [number, 97]}}},
        {"$out": SOURCE},
    ]
    seeds.aggregate(stages)
    seeds.drop()


def scan(client: Client) -> float:
    """Read all documents as they come; gives the seconds that took."""
    began = time.monotonic()
    for batch in client[RAW][SOURCE].find_raw_batches(batch_size=100_000):
        assert batch
    return time.monotonic() - began


def write(client: Client) -> float:
    """Write as many records as a backfill does, in bulk; gives the seconds that took, without reading."""
    target = client["bare"]["orders_by_customer"]
    target.create_index("customer")
    target.create_index([("_src.by", 1), ("_src.key", 1)])
    shape = [
        {"$set": {"_src": {"by": "orders", "key": "$_id", "at": "$$CLUSTER_TIME", "epoch": 1}}},
    ]
    raw: Any = client[RAW].get_collection(SOURCE, codec_options=CodecOptions(document_class=RawBSONDocument))
    seconds, some = 0.0, []
    for document in raw.aggregate(shape, batchSize=BULK):
        some.append(document)
        if len(some) == BULK:
            seconds += _timed(lambda some=some: target.insert_many(some, ordered=False))  # type: ignore[misc]
            some = []
    client.drop_database("bare")
    return seconds


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def backfill(uri: str, modules: Path) -> process.Finished:
    """Let a worker derive what exists."""
    environment: Mapping[str, str] = {
        "DISTRIBUTARY_SOURCE__URI": uri,
        "DISTRIBUTARY_SOURCE__DATABASE": RAW,
        "DISTRIBUTARY_DERIVED__DATABASE": DERIVED,
        "DISTRIBUTARY_WORKER__TRANSFORMERS": json.dumps([str(modules)]),
        "DISTRIBUTARY_HTTP__PORT": "0",
    }
    return process.run(
        process.python("-m", "distributary", "run", "--until-caught-up"), environment, RUN_SECONDS
    )


def measure(client: Client, uri: str, modules: Path, count: int) -> Round:
    """Measure one round, and leave the server as it was before."""
    scanned, written = scan(client), write(client)
    finished = backfill(uri, modules)
    wrong = abs(count - client[DERIVED]["orders_by_customer"].estimated_document_count())
    for name in (DERIVED, "distributary"):
        client.drop_database(name)
    took = finished.ended - finished.started
    return Round(count / scanned, count / written, count / took, finished.peak_mb, wrong)


@click.command(context_settings={"show_default": True})
@click.option(
    "--documents", default=10_000_000, help="Documents, in thousands of which the server makes them."
)
@click.option("--rounds", default=1)
def main(*, documents: int, rounds: int) -> None:
    """Measure; ends with 1 when a final state is wrong."""
    count = documents // PER_SEED * PER_SEED
    with tempfile.TemporaryDirectory(prefix="distributary-bench-") as folder:
        modules = Path(folder) / "modules"
        modules.mkdir()
        (modules / "orders.py").write_text(MODULE)
        with serve(Path(folder) / "data") as server, MongoClient[dict[str, Any]](server.uri) as client:
            fill(client, count)
            stolen = Stolen()
            found = [measure(client, server.uri, modules, count) for _ in range(rounds)]
    print(
        f"{count:,} documents, {rounds} rounds; documents/s, medians; stolen meanwhile: {stolen.percent():.0f}%"
    )
    print(f"  bare scan        {median(each.scan for each in found):>10,.0f}")
    print(f"  bare bulk write  {median(each.write for each in found):>10,.0f}")
    ratio = median(each.backfill / each.write for each in found)
    backfilled = median(each.backfill for each in found)
    print(f"  backfill         {backfilled:>10,.0f}  with start-up; {ratio:.2f} of the bulk write")
    print(f"  peak {max(each.peak_mb for each in found):,.0f} MB, {sum(each.wrong for each in found)} wrong")
    sys.exit(1 if any(each.wrong for each in found) else 0)


if __name__ == "__main__":
    main()
