"""A worker in this process on a test's own databases, and the recomputation that it has to equal."""

import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import dedent
from threading import Thread
from typing import Any

from bson import decode, encode
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.assemble import Assembled, connect, registry
from distributary.change import CODEC, identity
from distributary.config import Config, load
from distributary.derive.registry import Registry
from distributary.derive.rollup import Rollup
from distributary.derive.transform import Failure, derive
from distributary.engine.wiring import Goal
from distributary.errors import LeaseLost
from distributary.operate.jobs import carry_out
from distributary.operate.verify import Verification, Verifier
from distributary.parts import is_parts, shared_of
from distributary.testing.order import in_order
from tests.conftest import Databases

#: The module that most tests use: one record of its own, a fan-out, a key that moves, a condition.
ORDERS = """
    from distributary import DerivedCollection, transform

    by_customer = DerivedCollection("orders_by_customer", indexes=[["customer", "-total"]])
    lines = DerivedCollection("order_lines", indexes=["sku"])
    by_code = DerivedCollection("orders_by_code")

    @transform("orders")
    def orders(order):
        yield by_customer.record(order["_id"], {"customer": order.get("customer"), "total": order.get("total", 0)})
        for number, sku in enumerate(order.get("skus", []), start=1):
            yield lines.record({"order": order["_id"], "line": number}, {"sku": sku})
        if "code" in order:
            yield by_code.record(order["code"], {"order": order["_id"]})
"""


#: The same with shared records and rollups over both kinds.
CUSTOMERS = (
    ORDERS.replace("import DerivedCollection,", "import DerivedCollection, Rollup,")
    + """
        yield customer.item(order.get("customer"), "orders", order["_id"], {"total": order.get("total", 0)})
        if "code" in order:
            yield customer.section(order["code"], "coded", {"order": order["_id"]})

    customer = DerivedCollection("customer")
    spent = Rollup("customer_spent", over=by_customer, by="customer", compute={
        "orders": {"$sum": 1}, "spent": {"$sum": "$total"}, "totals": {"$addToSet": "$total"}})
    coded = Rollup("coded_orders", over=customer, by="coded.order", compute={"codes": {"$sum": 1}})
"""
)


@dataclass
class Harness:
    """A worker's configuration over a test's databases; `modules` maps file names to their code."""

    databases: Databases
    folder: Path
    modules: Mapping[str, str] = field(default_factory=lambda: {"orders": ORDERS})
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.write(self.modules)

    def write(self, modules: Mapping[str, str]) -> None:
        """Replace the transform modules."""
        self.folder.mkdir(exist_ok=True)
        for old in self.folder.glob("*.py"):
            old.unlink()
        for name, code in modules.items():
            (self.folder / f"{name}.py").write_text(dedent(code), encoding="utf-8")

    @property
    def environment(self) -> dict[str, str]:
        """The variables that configure a worker here."""
        return {
            "DISTRIBUTARY_SOURCE__URI": self.databases.uri,
            "DISTRIBUTARY_SOURCE__DATABASE": self.databases.raw.name,
            "DISTRIBUTARY_DERIVED__DATABASE": self.databases.derived.name,
            "DISTRIBUTARY_STATE__DATABASE": self.databases.state.name,
            "DISTRIBUTARY_WORKER__TRANSFORMERS": str(self.folder),
            "DISTRIBUTARY_WORKER__LEASE_SECONDS": "2",
            "DISTRIBUTARY_WORKER__IDLE_SAVE_SECONDS": "0.2",
            "DISTRIBUTARY_HTTP__PORT": "0",
        } | {f"DISTRIBUTARY_{key.upper().replace('.', '__')}": value for key, value in self.settings.items()}

    @property
    def config(self) -> Config:
        """The configuration, freshly loaded."""
        return load(None, self.environment)

    @property
    def registry(self) -> Registry:
        """The transforms that are plugged in now."""
        return registry(self.config)

    def catch_up(self) -> None:
        """Run a worker until it has caught up with now."""
        with self.assembled() as assembled:
            work(assembled, assembled.goal_of_now())

    def verified(self, names: Collection[str] = (), *, repair: bool = False, **options: Any) -> Verification:
        """Verify in this process; with `repair`, what differs is derived again."""
        with self.assembled() as assembled:
            if repair:
                options["repair"] = partial(carry_out, assembled)
            chosen = names or assembled.registry.transforms
            return Verifier(assembled.sides(), chosen, assembled.watch(), **options).run()

    @contextmanager
    def assembled(self) -> Iterator[Assembled]:
        """Give a worker that is connected."""
        with connect(self.config) as databases:
            yield Assembled(self.config, databases, self.registry)

    @contextmanager
    def running(self) -> Iterator[Assembled]:
        """Run a worker beside the test; what it dies of fails the test."""
        with self.assembled() as assembled:
            died: list[BaseException] = []
            thread = Thread(target=_recorded, args=(assembled, died), daemon=True)
            thread.start()
            try:
                yield assembled
            finally:
                assembled.stop.set()
                thread.join(30)
        assert not thread.is_alive()
        if died:
            raise died[0]

    def process(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start the command line as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "distributary", *arguments],
            env=os.environ | self.environment,
            text=True,
            **options,
        )

    def said(self, *arguments: str, code: int = 0) -> str:
        """Give what a verb prints; where it only complains, that."""
        with self.process(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=90)
        assert process.returncode == code, out + err
        return out or err

    def recomputed(self) -> dict[str, dict[Any, bytes]]:
        """Derive everything anew: per derived collection, the record's content by the identity of its key.

        Documents that fail yield nothing here; tests with such documents leave their records out. Rollups are computed
        over the records that are stored, all groups at once.
        """
        plugged = self.registry
        result: dict[str, dict[Any, bytes]] = {
            name: {} for name in plugged.collections.keys() - plugged.audited
        }
        parts: dict[str, list[dict[str, Any]]] = {}
        for transform in plugged.transforms.values():
            for document in self.databases.raw[transform.source].find():
                output = derive(transform, document, 10_000)
                for record in [] if isinstance(output, Failure) else output:
                    if is_parts(record.collection):
                        parts.setdefault(shared_of(record.collection), []).append(decode(record.body, CODEC))
                    else:
                        result[record.collection][record.identity] = record.body
        rollups = {name: grouped(self.databases.derived, each) for name, each in plugged.rollups.items()}
        return result | {name: put_together(some) for name, some in parts.items()} | rollups

    def derived(self) -> dict[str, dict[Any, bytes]]:
        """Give what is stored, in the form of `recomputed`."""
        plugged, derived = self.registry, self.databases.derived
        records = {
            name: {identity(each["_id"]): content(each) for each in derived[name].find()}
            for name in plugged.collections.keys() - plugged.audited
        }
        return records | {name: groups(derived, name) for name in plugged.rollups}

    def assert_equal(self) -> None:
        """Fail unless every derived collection equals a recomputation."""
        stored, expected = self.derived(), self.recomputed()
        for name in expected:
            assert stored[name] == expected[name], f"{name} differs from a recomputation"


def grouped(
    derived: Database[dict[str, Any]], rollup: Rollup, session: ClientSession | None = None
) -> dict[Any, bytes]:
    """Compute all groups of a rollup over what is stored, in the form of `groups`."""
    names = {path.replace(".", "_"): f"${path}" for path in rollup.paths}
    stages: list[dict[str, Any]] = [
        {"$match": {"$nor": [{path: None} for path in rollup.paths]}},
        {"$match": dict(rollup.match or {})},
        {"$group": {"_id": f"${rollup.by}" if isinstance(rollup.by, str) else names, **rollup.compute}},
    ]
    found = derived[rollup.over.name].aggregate(stages, session=session)
    return {identity(each["_id"]): _group(each) for each in found}


def groups(
    derived: Database[dict[str, Any]], name: str, session: ClientSession | None = None
) -> dict[Any, bytes]:
    """Give all groups that are stored of a rollup, by the identity of their keys."""
    return {identity(each["_id"]): _group(each) for each in derived[name].find({}, session=session)}


def _group(document: dict[str, Any]) -> bytes:
    """Give what a group came to; sets have no order."""
    fields = {name: value for name, value in document.items() if name not in {"_id", "_src"}}
    plain = {
        name: sorted(value, key=repr) if isinstance(value, list) else value for name, value in fields.items()
    }
    return encode(plain, codec_options=CODEC)


def work(assembled: Assembled, goal: Goal) -> None:
    """Wait for the lease and work until the goal is reached."""
    tenure = assembled.tenure()
    assert tenure.wait()
    with tenure.held():
        assembled.work(tenure, goal)


def _recorded(assembled: Assembled, died: list[BaseException]) -> None:
    try:
        work(assembled, Goal())
    except LeaseLost:
        return
    except BaseException as error:  # noqa: BLE001 - raised again by the test
        died.append(error)


def put_together(parts: Iterable[dict[str, Any]]) -> dict[Any, bytes]:
    """Give shared records of which these are all parts."""
    records: dict[Any, dict[str, Any]] = {}
    for part in sorted(parts, key=lambda part: in_order(part["_id"].get("i"))):
        key, name = part["_id"]["k"], part["_id"]["s"]
        record = records.setdefault(identity(key), {"_id": key})
        if "i" in part["_id"]:
            record.setdefault(name, []).append(part["f"])
        else:
            record[name] = part["f"]
    return {key: content(record) for key, record in records.items()}


def content(document: dict[str, Any]) -> bytes:
    """Give a record's content; that of a shared one in the order of its sections' names."""
    source = document.pop("_src", None)
    if source is None or source.get("shared"):
        document = {name: document[name] for name in sorted(document)}
    return encode(document, codec_options=CODEC)
