"""A transform's fingerprint: it changes with the code that can reach the result, and with nothing else."""

import ast
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import bson
import pytest

import distributary
from distributary.derive.fingerprint import form
from distributary.derive.transform import Transform
from distributary.plugins import load

ORDERS = '''
"""Orders, as customers see them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distributary import DerivedCollection, transform

from . import _money
from ._shared import VAT, by_region

by_customer = DerivedCollection("by_customer", indexes=["customer"])
TARGETS = {"lines": DerivedCollection("lines", indexes=["sku"])}
RATES = {"a": 1}
RATES["b"] = 2

@dataclass
class Total:
    """A sum."""
    amount: int = 0

    def rounded(self):
        return math.floor(self.amount)

def total(order):
    """Sum up."""
    return Total(sum(line["price"] * rate(line) for line in order["lines"]))

def rate(line):
    return RATES[line["kind"]] * VAT

def unrelated(x):
    return x

@transform("orders")
def orders(order):
    """Derive."""
    unit, text = 1, f"{order['_id']!r:>{10}}: {order['n']=}"
    yield by_customer.record(order["_id"], {"total": total(order).rounded(), "text": text})
    yield by_region.record(order["_id"], {"unit": unit, "cents": _money.cents(order)})
    match order:
        case {"lines": [first, *others], **rest} if (unit := len(others)):
            yield TARGETS["lines"].record(first, {"rest": list(rest)})
'''
SHARED = """
from distributary import DerivedCollection

by_region = DerivedCollection("by_region", indexes=["region"])
unused = DerivedCollection("unused")
VAT = 1.19
OTHER = 1
"""
MONEY = """
from ._shared import OTHER as FACTOR

def cents(order):
    from ._lazy import exact
    return exact(order["total"]) * FACTOR

def euros(order):
    return order["total"]
"""
LAZY = """
def exact(value):
    return value

def inexact(value):
    return value
"""
FILES = {"orders.py": ORDERS, "_shared.py": SHARED, "_money.py": MONEY, "_lazy.py": LAZY}

#: Pinned, so that every Python version that runs these tests is held to the same value.
FINGERPRINT = "95ce35dfdd8893f7"

#: What is edited, in which file, what is replaced there, and by what.
Edit = tuple[str, str, str]

SAME: dict[str, Edit] = {
    "a comment": ("orders.py", "RATES = {", "# what it costs\nRATES = {"),
    "a docstring of the transform": ("orders.py", '"""Derive."""', '"""Derive well."""'),
    "no docstring": ("orders.py", '    """Sum up."""\n', ""),
    "the docstring of the module": ("orders.py", '"""Orders, as', '"""All orders, as'),
    "a docstring of a class": ("orders.py", '"""A sum."""', '"""A total."""'),
    "quotes and line breaks": ("orders.py", 'RATES[line["kind"]] * VAT', "(RATES[\n line['kind']]\n * VAT)"),
    "how a number is written": ("orders.py", "unit, text = 1,", "unit, text = 0x1,"),
    "an unrelated function": ("orders.py", "    return x\n", "    return x + 1\n"),
    "a function with a local variable's name": (
        "orders.py",
        "def unrelated(",
        "def unit(): ...\ndef unrelated(",
    ),
    "constants with captured names": ("orders.py", "def unrelated(", "others = rest = 1\ndef unrelated("),
    "an import that is not used": ("orders.py", "import math\n", "import math, json\n"),
    "something new in between": ("orders.py", "RATES =", "def early(x):\n    return x\n\nRATES ="),
    "a main block": ("orders.py", "def rate(", 'if __name__ == "__main__":\n    print(RATES)\ndef rate('),
    "indexes": ("orders.py", 'indexes=["customer"]', 'indexes=["-customer"]'),
    "indexes of a collection in a dict": ("orders.py", ', indexes=["sku"]', ""),
    "indexes of an imported collection": ("_shared.py", '"region"]', '"region", "at"]'),
    "an unrelated import of an imported module": ("_money.py", "OTHER as FACTOR", "OTHER as FACTOR, VAT"),
    "an unrelated function of an imported module": ("_money.py", 'return order["total"]\n', "return 0\n"),
    "an unrelated function of a late import": ("_lazy.py", "inexact(value):\n", "inexact(value, digits):\n"),
}

DIFFERENT: dict[str, Edit] = {
    "the source collection": ("orders.py", '@transform("orders")', '@transform("orders_v2")'),
    "its own body": ("orders.py", "unit, text = 1,", "unit, text = 2,"),
    "the conversion in an f-string": ("orders.py", "!r:>", "!s:>"),
    "a helper": ("orders.py", '["price"]', '["cost"]'),
    "a helper's helper": ("orders.py", "* VAT", "/ VAT"),
    "a method": ("orders.py", "math.floor", "math.ceil"),
    "a default in a class": ("orders.py", "amount: int = 0", "amount: int = 1"),
    "a decorator of a class": ("orders.py", "@dataclass\n", "@dataclass(frozen=True)\n"),
    "a decorator of the transform": ("orders.py", '@transform("orders")', '@transform("orders")\n@unrelated'),
    "a constant": ("orders.py", '{"a": 1}', '{"a": 3}'),
    "the type of a constant": ("orders.py", '{"a": 1}', '{"a": 1.0}'),
    "an item that is set later": ("orders.py", 'RATES["b"] = 2', 'RATES["b"] = 3'),
    "a call that changes a constant": ("orders.py", 'RATES["b"] = 2', "RATES.update(b=2)"),
    "a loop that changes a constant": ("orders.py", 'RATES["b"] = 2', 'for k in "bc":\n    RATES[k] = 2'),
    "an import of another package": ("orders.py", "import math\n", "import cmath as math\n"),
    "a function that hides a builtin": ("orders.py", "def rate(", "def len(x):\n    return 3\ndef rate("),
    "the name of a collection": ("orders.py", '"by_customer"', '"by_client"'),
    "the name of a collection in a dict": ("orders.py", 'Collection("lines"', 'Collection("items"'),
    "the name of an imported collection": ("_shared.py", '"by_region"', '"by_area"'),
    "an imported constant": ("_shared.py", "1.19", "1.07"),
    "a constant that an imported module imports": ("_shared.py", "OTHER = 1", "OTHER = 2"),
    "a function of an imported module": ("_money.py", "* FACTOR", "+ FACTOR"),
    "a function of a late import": ("_lazy.py", "def exact(value):\n", "def exact(value, digits=2):\n"),
}

OTHER_PYTHONS = ["3.11", "3.12", "3.13", "3.14"]

#: Loads a folder and prints what became of its transforms.
PROBE = """
import json, sys
from distributary.plugins import load
print(json.dumps({t.name: t.fingerprint for t in load(sys.argv[1:], entry_points=False).transforms.values()}))
"""


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """Write a folder of modules."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def orders(folder: Path, files: Mapping[str, str]) -> Transform:
    """Write the modules to a new folder and give their transform `orders`."""
    return load([write(folder, files)], entry_points=False).transforms["orders"]


def edited(edit: Edit) -> dict[str, str]:
    """Give the files after an edit."""
    name, old, new = edit
    assert FILES[name].count(old) >= 1
    return {**FILES, name: FILES[name].replace(old, new, 1)}


@pytest.mark.parametrize("edit", SAME.values(), ids=SAME)
def test_it_stays(tmp_path: Path, edit: Edit) -> None:
    """An edit that cannot change what is derived leaves the fingerprint alone."""
    assert orders(tmp_path / "t", edited(edit)).fingerprint == FINGERPRINT


@pytest.mark.parametrize("edit", DIFFERENT.values(), ids=DIFFERENT)
def test_it_changes(tmp_path: Path, edit: Edit) -> None:
    """An edit that can change what is derived changes the fingerprint, however far away it is."""
    assert orders(tmp_path / "t", edited(edit)).fingerprint != FINGERPRINT


def test_it_is_the_same_everywhere(tmp_path: Path) -> None:
    """The value is pinned: another machine, folder, process or Python version gives the same."""
    assert orders(tmp_path / "t", FILES).fingerprint == FINGERPRINT


def test_a_file_may_be_renamed(tmp_path: Path) -> None:
    """The names of the author's own files are no code."""
    files = {**FILES, "sales.py": ORDERS.replace("_shared", "_common"), "_common.py": SHARED}
    files["_money.py"] = MONEY.replace("_shared", "_common")
    del files["orders.py"], files["_shared.py"]
    assert orders(tmp_path / "t", files).fingerprint == FINGERPRINT


def test_a_folder_may_become_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same modules as an importable package, with a late import inside, have the same fingerprint."""
    write(tmp_path / "became_a_package", {**FILES, "__init__.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = load(["became_a_package"], entry_points=False)
    assert loaded.transforms["orders"].fingerprint == FINGERPRINT


def test_absolute_imports_within_a_package_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a package of the author's own, `import package.module` leads to that module's code."""
    rules = "def double(x):\n    return {}\n"
    plugin = """
        import {0}.rules as rules
        from distributary import DerivedCollection, transform
        out = DerivedCollection("out")
        @transform("a")
        def orders(document):
            yield out.record(1, {{"x": rules.double(1)}})
    """
    found = []
    for package, text in {"rules_one": "x * 2", "rules_two": "x * 2", "rules_three": "x + x"}.items():
        files = {
            "__init__.py": "",
            "rules.py": rules.format(text),
            "plugin.py": dedent(plugin.format(package)),
        }
        write(tmp_path / package, files)
        monkeypatch.syspath_prepend(str(tmp_path))
        found.append(load([f"{package}.plugin"], entry_points=False).transforms["orders"])
    texts = [transform.fingerprint for transform in found]
    assert texts[0] == texts[1] != texts[2]


def test_star_imports_are_followed(tmp_path: Path) -> None:
    """What `from .module import *` brought counts by that module's code."""
    files = {**FILES, "orders.py": ORDERS.replace("import VAT, by_region", "import *")}
    before = orders(tmp_path / "a", files)
    after = orders(tmp_path / "b", {**files, "_shared.py": SHARED.replace("1.19", "1.07")})
    assert before.collections == after.collections == {"by_customer", "by_region", "lines"}
    assert before.fingerprint != after.fingerprint


def test_collections_are_those_that_the_code_names(tmp_path: Path) -> None:
    """Those that are used directly, that a container holds and that a sibling declares; no others."""
    assert orders(tmp_path / "t", FILES).collections == {"by_customer", "by_region", "lines"}


def test_collections_behind_helpers_and_modules_are_found(tmp_path: Path) -> None:
    """A helper's collections count, also when they are reached as `module.name` or inside a class."""
    files = {
        "_names.py": """
            from distributary import DerivedCollection
            one = DerivedCollection("one")
            class Out:
                two = DerivedCollection("two")
            """,
        "orders.py": """
            from distributary import transform
            from . import _names
            def spread(document):
                yield _names.one.record(1, {})
                yield _names.Out.two.record(1, {})
            @transform("orders")
            def orders(document):
                yield from spread(document)
            """,
    }
    texts = {name: dedent(text) for name, text in files.items()}
    assert orders(tmp_path / "t", texts).collections == {"one", "two"}


def test_deep_code_is_no_obstacle(tmp_path: Path) -> None:
    """A chain of hundreds of conditions or additions, as generated code has, is fingerprinted."""
    chain = "\n".join(f"    elif x == {number}:\n        return {number}" for number in range(400))
    addition = " + ".join(["1"] * 400)
    rule = f"def rate(x):\n    if not x:\n        return {addition}\n{chain}\n\ndef unused(line):"
    files = {**FILES, "orders.py": ORDERS.replace("def rate(line):", rule)}
    assert orders(tmp_path / "t", files).fingerprint != FINGERPRINT


def test_what_newer_pythons_add_to_the_tree_does_not_count() -> None:
    """Parameters of types that nothing has, which trees have from 3.12 on, and in any later field that is empty."""
    source = "def f(x):\n    return 1\n\nclass C:\n    pass\n"
    tree, newer = ast.parse(source), ast.parse(source)
    for node in newer.body:
        node._fields = (*node._fields, "type_params", "later")  # type: ignore[misc]
        node.type_params, node.later = [], None  # type: ignore[attr-defined]
    assert form(newer) == form(tree)
    newer.body[0].later = "told"  # type: ignore[attr-defined]
    assert form(newer) != form(tree)


@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_other_pythons_agree(tmp_path: Path, version: str) -> None:
    """Another supported Python version gives the same fingerprint, so an upgrade rebuilds nothing."""
    python = shutil.which(f"python{version}")
    if not python or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"python{version} is not installed")
    site = tmp_path / "site"
    site.mkdir()
    for package in (bson, distributary):
        (site / package.__name__).symlink_to(Path(package.__path__[0]))
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, "-c", PROBE, str(write(tmp_path / "t", FILES))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"orders": FINGERPRINT}
