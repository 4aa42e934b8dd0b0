"""`python benchmarks/memory.py`: the worker's memory is bounded, whatever the size of documents.

Small documents in a great number and large ones are backfilled, then updated with updates that carry nothing, so
that the worker has to read every document again. Its peak (`VmHWM`) is compared with a limit.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from bson import encode
from pymongo import MongoClient

from benchmarks import process
from benchmarks.server import serve

RAW, DERIVED, SOURCE = "raw", "derived", "documents"
RUN_SECONDS = 3600.0
MB = 1_000_000

#: A copy of the document, so that what is written is as large as what is read, and something small.
MODULE = """
from distributary import DerivedCollection, transform

copies = DerivedCollection("copies")
summaries = DerivedCollection("summaries", indexes=["owner"])

@transform("documents")
def documents(document):
    items = document["items"]
    yield copies.record(document["_id"], {"version": document["version"], "items": items})
    yield summaries.record(document["_id"], {"owner": document["owner"], "count": len(items)})
"""

Client = MongoClient[dict[str, Any]]


@dataclass(frozen=True)
class Workload:
    """So many documents of about so many bytes, and so many updates of each."""

    name: str
    documents: int
    size: int
    updates: int


@dataclass(frozen=True)
class Peak:
    """What one phase of a workload took: seconds, megabytes, and how many records are not as they should be."""

    workload: Workload
    phase: str
    seconds: float
    megabytes: float
    wrong: int


def items(size: int) -> list[dict[str, Any]]:
    """Give a list of many small values that takes about so many bytes."""
    one = {
        "sku": "sku-000000",
        "name": "something that is sold",
        "quantity": 3,
        "price": 12.5,
        "tags": ["a", "b"],
    }
    return [{**one, "sku": f"sku-{number:06}"} for number in range(max(1, size // (len(encode(one)) + 8)))]


def fill(client: Client, workload: Workload) -> None:
    """Insert the documents, a few megabytes at a time."""
    content = items(workload.size)
    some = max(1, 8 * MB // workload.size)
    for first in range(0, workload.documents, some):
        numbers = range(first, min(first + some, workload.documents))
        client[RAW][SOURCE].insert_many(
            [{"_id": number, "owner": number % 100, "version": 0, "items": content} for number in numbers]
        )


def update(client: Client, workload: Workload) -> None:
    """Change one field of every document, so often."""
    for _ in range(workload.updates):
        client[RAW][SOURCE].update_many({}, {"$inc": {"version": 1}})


def wrong(client: Client, version: int) -> int:
    """Count the documents whose two records are not as they should be."""
    expected = client[RAW][SOURCE].estimated_document_count()
    copies = client[DERIVED]["copies"].count_documents({"version": version})
    summaries = client[DERIVED]["summaries"].estimated_document_count()
    return max(abs(expected - copies), abs(expected - summaries))


def worker(uri: str, modules: Path, settings: Mapping[str, str]) -> process.Finished:
    """Let a worker catch up."""
    environment = {
        "DISTRIBUTARY_SOURCE__URI": uri,
        "DISTRIBUTARY_SOURCE__DATABASE": RAW,
        "DISTRIBUTARY_DERIVED__DATABASE": DERIVED,
        "DISTRIBUTARY_WORKER__TRANSFORMERS": json.dumps([str(modules)]),
        "DISTRIBUTARY_HTTP__PORT": "0",
        **settings,
    }
    command = process.python("-m", "distributary", "run", "--until-caught-up")
    return process.run(command, environment, RUN_SECONDS)


def measure(workload: Workload, folder: Path, settings: Mapping[str, str]) -> Iterator[Peak]:
    """Backfill the documents, then follow their updates."""
    modules = folder / "modules"
    modules.mkdir(parents=True)
    (modules / "documents.py").write_text(MODULE)
    with serving(folder / "data") as uri, connected(uri) as client:
        fill(client, workload)
        yield _phase("backfill", workload, worker(uri, modules, settings), wrong(client, 0))
        update(client, workload)
        yield _phase("updates", workload, worker(uri, modules, settings), wrong(client, workload.updates))


def _phase(name: str, workload: Workload, finished: process.Finished, wrong: int) -> Peak:
    return Peak(workload, name, finished.ended - finished.started, finished.peak_mb, wrong)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run a server with a history that holds all updates."""
    with serve(folder) as server:
        yield server.uri


@contextmanager
def connected(uri: str) -> Iterator[Client]:
    """Give a client."""
    client: Client
    with MongoClient(uri) as client:
        yield client


@click.command(context_settings={"show_default": True})
@click.option("--small", default=200_000, help="Documents of 20 KB.")
@click.option("--large", default=200, help="Documents of 15 MB.")
@click.option("--limit", default=512, help="Megabytes that the worker may take.")
@click.option("--batch-bytes", default="", help="worker.batch_bytes; empty: the default.")
def main(*, small: int, large: int, limit: int, batch_bytes: str) -> None:
    """Measure the worker's peak memory; ends with 1 when it is over the limit or a final state is wrong."""
    workloads = [Workload("small", small, 20_000, 1), Workload("large", large, 15 * MB, 1)]
    settings = {"DISTRIBUTARY_WORKER__BATCH_BYTES": batch_bytes} if batch_bytes else {}
    print(f"{'documents':>20} {'phase':>10} {'seconds':>8} {'MB/s':>6} {'peak MB':>8} {'wrong':>6}")
    failed = False
    for workload in workloads:
        with tempfile.TemporaryDirectory(prefix="distributary-bench-") as folder:
            for peak in measure(workload, Path(folder), settings):
                print(_row(peak), flush=True)
                failed = failed or peak.wrong > 0 or peak.megabytes > limit
    sys.exit(1 if failed else 0)


def _row(peak: Peak) -> str:
    megabytes = peak.workload.documents * peak.workload.size / MB
    size = f"{peak.workload.documents:,} x {peak.workload.size / 1000:,.0f} KB"
    return (
        f"{size:>20} {peak.phase:>10} {peak.seconds:>8.1f} {megabytes / peak.seconds:>6.0f} "
        f"{peak.megabytes:>8.0f} {peak.wrong:>6}"
    )


if __name__ == "__main__":
    main()
