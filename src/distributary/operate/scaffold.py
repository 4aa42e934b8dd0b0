"""A new transform module and its test, to begin with."""

import json
import keyword
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distributary.errors import Failed

#: Names that the two files use themselves.
RESERVED = frozenset(
    {"DOCUMENT", "Any", "Deleted", "DerivedCollection", "FIELDS", "Iterator", "Path", "Record"}
    | {"apply", "database", "derive", "dict", "document", "load", "name", "overview", "str", "transform"}
)

#: Leaves room for what the name of a derived collection has beside it.
LONGEST_NAME = 100

_MODULE = '''\
"""{title}, as readers need them.

{name}_overview: say here which question it answers.
"""

from collections.abc import Iterator
from typing import Any

from distributary import DerivedCollection, Record, transform

# A collection for each question. Name an index for what readers filter and sort by, `-` is descending:
# indexes=["status", ["customer_id", "-created_at"]].
overview = DerivedCollection("{name}_overview", indexes=["status"])

FIELDS = ("name", "status")  # what readers need; put your own fields here


@transform({source})  # a collection of the source database
def {name}(document: dict[str, Any]) -> Iterator[Record]:
    """Give what one document yields in its current state; what it no longer yields is removed."""
    # The document alone decides: no clock, no chance, no other document. Leave a record out with a plain `if`.
    if document.get("status") != "hidden":
        yield overview.record(document["_id"], {{name: document.get(name) for name in FIELDS}})

    # Yield more records, of this collection or another one. Where two documents could yield one key, put the
    # document's into it: lines.record({{"order": document["_id"], "line": number}}, {{...}}).
'''

_TEST = '''\
"""What {name} yields, and what becomes of it when documents change."""

from pathlib import Path
from typing import Any

from distributary.testing import Deleted, apply, derive, load

{name} = load({path}).{name}

# A document as it lies in the raw collection; put one of your own here.
DOCUMENT: dict[str, Any] = {{"_id": 1, "name": "first", "status": "new"}}


def test_a_document_yields_its_record() -> None:
    """The record has what readers need."""
    assert derive({name}, DOCUMENT) == {{"{name}_overview": {{1: {{"name": "first", "status": "new"}}}}}}


def test_a_hidden_document_yields_nothing() -> None:
    """What is not to be shown leaves the collection."""
    assert derive({name}, DOCUMENT | {{"status": "hidden"}}) == {{}}


def test_a_document_without_any_field_is_derived() -> None:
    """What is missing parks no document."""
    assert 1 in derive({name}, {{"_id": 1}})["{name}_overview"]


def test_the_record_follows_its_document() -> None:
    """An update changes the record, a delete removes it."""
    database = apply({name}, [DOCUMENT, DOCUMENT | {{"status": "done"}}])
    assert database["{name}_overview"].count_documents({{"status": "done"}}) == 1
    apply({name}, [Deleted(1)], database)
    assert database["{name}_overview"].count_documents({{}}) == 0
'''


@dataclass(frozen=True, slots=True)
class Scaffold:
    """A transform of this name for a source collection, and the folders that it and its test go to."""

    name: str
    source: str
    folder: Path
    tests: Path

    @property
    def module(self) -> Path:
        """The transform module."""
        return self.folder / f"{self.name}.py"

    @property
    def test(self) -> Path:
        """The module's test."""
        return self.tests / f"test_{self.name}.py"

    def write(self) -> Sequence[Path]:
        """Write both files and give them; raises `Failed`, and writes nothing, when there is one already."""
        texts = {self.module: self._module(), self.test: self._test()}
        for path in texts:
            if os.path.lexists(path):
                raise Failed(f"{path} exists already.", "Choose another name or folder, or remove the file.")
        try:
            for path, text in texts.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("x", encoding="utf-8") as file:
                    file.write(text)
        except OSError as error:
            raise Failed(f"{error.filename} cannot be written: {error.strerror}.", _WRITABLE) from error
        return list(texts)

    def _module(self) -> str:
        title = self.name.replace("_", " ").capitalize()
        source = json.dumps(self.source, ensure_ascii=False)
        return _MODULE.format(title=title, name=self.name, source=source)

    def _test(self) -> str:
        return _TEST.format(name=self.name, path=self._path_from_test())

    def _path_from_test(self) -> str:
        """Give the module's path as Python code that holds wherever pytest is started."""
        parts = Path(os.path.relpath(self.module.absolute(), self.tests.absolute())).parts
        up = parts.count(os.pardir)
        folder = f"Path(__file__).parents[{up}]" if up else "Path(__file__).parent"
        return f"{folder} / {json.dumps(str(Path(*parts[up:])), ensure_ascii=False)}"


_WRITABLE = "Name folders that this user may write to, with --folder and --tests."


def problem_of(name: str) -> str:
    """Say why a transform and its module cannot have this name; empty when they can."""
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        return "is no Python identifier of ASCII letters, digits and `_`"
    if len(name) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} letters"
    if name.startswith("_"):
        return "begins with `_`: such modules are not searched for transforms"
    return "is a name that the module or its test uses itself" if name in RESERVED else ""
