"""Loading transform modules: from folders, files, packages and entry points, and what goes wrong in them."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import bson
import pytest

from distributary.derive.transform import Failure, derive
from distributary.errors import ConfigurationError, Fault
from distributary.plugins import load

HEAD = "from distributary import DerivedCollection, transform\n"


def plain(name: str, rest: str = "") -> str:
    """Give a module with one transform and one collection, each named after it, in lines 2 and 4."""
    return f"""{HEAD}out = DerivedCollection("{name}_out")
@transform("raw_{name}")
def {name}(document):
    yield out.record(document["_id"], {{}})
{dedent(rest)}"""


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """Write modules to a folder, which may be there."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return folder


def faults(*entries: str | Path) -> list[Fault]:
    """Give the faults of entries that cannot be loaded."""
    with pytest.raises(ConfigurationError) as raised:
        load(entries, entry_points=False)
    return list(raised.value.faults)


def places(*entries: str | Path) -> list[str]:
    """Give the places of these faults."""
    return [fault.place for fault in faults(*entries)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty directory that is importable; forget what was imported from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_folder_is_loaded_in_order(tmp_path: Path) -> None:
    """Every module that does not start with `_` or `.`, by name and then by line, with places."""
    second = plain("b") + '@transform("raw_a", name="early")\ndef late(document): ...\n'
    write(
        tmp_path / "t", {"b.py": second, "a.py": plain("a"), "_no.py": "1/0", ".no.py": "1/0", "no.txt": ""}
    )
    registry = load(["./t"], entry_points=False)
    assert list(registry.transforms) == ["a", "b", "early"]
    assert [transform.name for transform in registry.by_source["raw_a"]] == ["a", "early"]
    assert registry.transforms["b"].place == "t/b.py:4"
    assert registry.places == {"a_out": "t/a.py:2", "b_out": "t/b.py:2"}
    assert registry.sources == ("raw_a", "raw_b")


def test_only_some_transforms_are_kept(tmp_path: Path) -> None:
    """`only` is applied to what was loaded; an unknown name is a fault."""
    write(tmp_path / "t", {"a.py": plain("a"), "b.py": plain("b")})
    assert list(load(["t"], ["b"], entry_points=False).transforms) == ["b"]
    with pytest.raises(ConfigurationError, match="no transform is called 'c'"):
        load(["t"], ["c"], entry_points=False)


def test_siblings_import_each_other_relatively(tmp_path: Path) -> None:
    """`from . import x`, `from .x import y` and packages in the folder work; nothing is collected twice."""
    using = """
        from . import _shared
        from .a import a, out as theirs
        from .deep.down import three
        from distributary import transform
        @transform("raw")
        def user(document):
            yield _shared.common.record(_shared.ONE + three(), {})
            yield theirs.record(1, {})
        alias = user
        """
    shared = HEAD + 'common = DerivedCollection("common")\nunused = DerivedCollection("unused")\nONE = 1\n'
    deep = {"deep/__init__.py": "", "deep/down.py": "def three():\n    return 3\n"}
    write(tmp_path / "t", {"a.py": plain("a"), "_shared.py": shared, "user.py": using, **deep})
    registry = load(["t"], entry_points=False)
    assert list(registry.transforms) == ["a", "user"]
    assert registry.places == {"a_out": "t/a.py:2", "common": "t/_shared.py:2"}
    assert registry.owners_of("a_out") == {"a", "user"}


def test_files_shadow_nothing(tmp_path: Path) -> None:
    """Files may be called like modules of the standard library and of PyPI; the folder is on no path."""
    names = ["json", "bson", "transformers", "orders-v2"]
    text = "import json, bson\nassert json.loads('1') and bson.ObjectId\n"
    files = {f"{name}.py": text + plain(f"t{number}") for number, name in enumerate(names)}
    before = [*sys.path]
    registry = load([write(tmp_path / "t", files)], entry_points=False)
    assert len(registry.transforms) == len(names)
    assert sys.path == before
    assert not any(Path(module.__file__ or "").is_relative_to(tmp_path) for module in (json, bson))
    assert "orders-v2" not in sys.modules


def test_loading_again_reads_the_files_again(tmp_path: Path) -> None:
    """An edit in the same second and of the same size is seen, and the first registry goes on working."""
    write(tmp_path / "t", {"a.py": plain("a", "from ._b import x"), "_b.py": "x = 1\n"})
    first = load(["t"], entry_points=False)
    write(tmp_path / "t", {"a.py": plain("b", "from ._b import x"), "_b.py": "x = 2\n"})
    second = load(["t"], entry_points=False)
    assert (list(first.transforms), list(second.transforms)) == (["a"], ["b"])
    assert vars(sys.modules[second.transforms["b"].function.__module__])["x"] == 2
    assert derive(first.transforms["a"], {"_id": 1}, 10)


def test_nothing_is_cached_on_disk(tmp_path: Path) -> None:
    """A folder may be read-only: loading leaves no trace in it."""
    folder = write(tmp_path / "t", {"a.py": plain("a", "from . import _b"), "_b.py": ""})
    load([folder], entry_points=False)
    assert sorted(path.name for path in folder.iterdir()) == ["_b.py", "a.py"]


def test_a_file_is_an_entry(tmp_path: Path) -> None:
    """One file alone is loaded, and not a second time with its folder."""
    write(tmp_path / "t", {"a.py": plain("a", "from . import _b"), "b.py": plain("b"), "_b.py": ""})
    assert list(load(["t/a.py"], entry_points=False).transforms) == ["a"]
    assert list(load(["t/b.py", "t", tmp_path / "t"], entry_points=False).transforms) == ["b", "a"]


def test_modules_and_packages_are_entries(tmp_path: Path) -> None:
    """An importable module is loaded, of a package its submodules too, except those that start with `_`."""
    write(tmp_path, {"some_module.py": plain("single")})
    files = {
        "__init__.py": plain("top"),
        "__main__.py": "1/0",
        "one.py": plain("one"),
        "sub/__init__.py": "",
        "sub/two.py": plain("two"),
    }
    write(tmp_path / "lib" / "some_package", files)
    sys.path.insert(0, str(tmp_path / "lib"))
    registry = load(["some_module", "some_package", "some_package.sub.two"], entry_points=False)
    assert list(registry.transforms) == ["single", "top", "one", "two"]
    assert registry.transforms["two"].place == "lib/some_package/sub/two.py:4"


def advertise(folder: Path, distribution: str, module: str) -> None:
    """Install a distribution that advertises a module."""
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n",
        "entry_points.txt": f"[distributary.transformers]\nours = {module}\n",
    }
    write(folder / f"{distribution}-1.dist-info", files)


def test_entry_points_are_loaded(tmp_path: Path) -> None:
    """What installed packages advertise is loaded beside the entries, unless that is switched off."""
    write(tmp_path, {"advertised_one.py": plain("one"), "t/a.py": plain("a")})
    advertise(tmp_path, "plugin_one", "advertised_one")
    assert list(load(["t"]).transforms) == ["a", "one"]
    assert list(load(["t"], entry_points=False).transforms) == ["a"]


def test_a_bad_entry_point_is_a_fault(tmp_path: Path) -> None:
    """Its fault is placed at the entry point and its distribution."""
    write(tmp_path, {"t/a.py": plain("a")})
    advertise(tmp_path, "plugin_two", "missing_one")
    with pytest.raises(ConfigurationError) as raised:
        load(["t"])
    (fault,) = raised.value.faults
    assert fault.place == "entry point 'ours' of plugin_two"
    assert "'missing_one'" in fault.problem


def test_wrapped_and_made_transforms_are_found(tmp_path: Path) -> None:
    """What a sibling's decorator wraps, with or without `wraps`, or its factory makes belongs to the user."""
    shared = HEAD + dedent("""
        import functools
        def polite(function):
            @functools.wraps(function)
            def inner(document):
                return function(document)
            return inner
        def rude(function):
            return lambda document: function(document)
        def make(name):
            @transform("raw", name=name)
            def made(document): ...
            return made
        """)
    using = HEAD + dedent("""
        from ._shared import make, polite, rude
        @polite
        @transform("raw")
        def one(document): ...
        @transform("raw", name="two")
        @rude
        def two(document): ...
        three = make("three")
        """)
    write(tmp_path / "t", {"_shared.py": shared, "a.py": using})
    registry = load(["t"], entry_points=False)
    lines = {transform.name: transform.place for transform in registry.transforms.values()}
    assert lines == {"one": "t/a.py:6", "two": "t/a.py:9", "three": "t/a.py:10"}


BROKEN = {
    "def f(:\n": ("1", "SyntaxError: ", "Correct that line."),
    "x = 1\nimport surely_missing\n": ("2", "No module named 'surely_missing'", "Install the package"),
    "\nimport fine\n": ("2", "No module named 'fine'", "`from . import fine`"),
    "from .nowhere import x\n": ("1", "No module named '.nowhere'", "Correct that line."),
    "from .fine import nothing\n": ("1", "cannot import name 'nothing' from '.fine'", "Correct that line."),
    "def f():\n    return {}['k']\nf()\n": ("2", "KeyError: 'k'", "Correct that line."),
    "import json\njson.loads('{')\n": ("2", "JSONDecodeError: ", "Correct that line."),
    "import sys\nsys.exit(3)\n": ("2", "sys.exit(3) was called", '`if __name__ == "__main__":`'),
    "class E(BaseException): ...\nraise E('a\\nb')\n": ("2", "E: a b", "Correct that line."),
    f"{HEAD}@transform\ndef f(d): ...\n": ("2", "name the source collection", "Correct that line."),
}


@pytest.mark.parametrize(("text", "expected"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_module_that_does_not_import_is_a_fault(
    tmp_path: Path, text: str, expected: tuple[str, str, str]
) -> None:
    """Whatever it raises: the author's own line, the exception in one line, and a cure."""
    write(tmp_path / "t", {"broken.py": text, "fine.py": plain("fine")})
    (fault,) = faults("t")
    line, problem, cure = expected
    assert fault.place == f"t/broken.py:{line}"
    assert problem in fault.problem
    assert cure in fault.cure


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    """Faults of imports, of entries and of the registry are in one error, each once."""
    bad = HEAD + 'out = DerivedCollection("a_out", indexes="x")\n@transform("r")\ndef a(x, y): ...\n'
    files = {"a.py": plain("a"), "b.py": bad, "c.py": "from . import _d\n", "d.py": "from ._d import x\n"}
    write(tmp_path / "t", {**files, "_d.py": "1/0\n"})
    assert places("t", "./missing", "missing_module") == [
        "t/_d.py:1",
        "worker.transformers",
        "worker.transformers",
        "t/b.py:4",
        "t/b.py:4",
        "t/b.py:2",
        "t/b.py:2",
    ]


def test_failing_leaves_no_modules_behind(tmp_path: Path) -> None:
    """Modules of a failed call are forgotten, so that the next call starts afresh; others' modules stay."""
    files = {"__init__.py": "", "a.py": plain("a"), "b.py": "import antigravity_free\n1/0\n"}
    write(tmp_path, {"antigravity_free.py": "", "t/a.py": plain("x"), "t/b.py": "1/0"})
    write(tmp_path / "some_package", files)
    before = set(sys.modules)
    assert places("some_package.a", "some_package.b", "./t") == ["some_package/b.py:2", "t/b.py:1"]
    assert set(sys.modules) - before - {"distributary_transformers"} == {"antigravity_free"}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("transformers", "there is no folder or file 'transformers'"),
        ("./nowhere", "there is no folder or file 'nowhere'"),
        ("nowhere.py", "there is no folder or file 'nowhere.py'"),
        ("nowhere", "there is neither a folder nor a module 'nowhere'"),
        ("json.nowhere", "there is neither a folder nor a module 'json.nowhere'"),
        ("notes.txt", "neither a folder nor a `.py` file"),
        ("empty", "holds no transform module"),
        ("bare", "there is no transform in any module"),
    ],
)
def test_bad_entries_are_faults_with_a_cure(tmp_path: Path, entry: str, problem: str) -> None:
    """What an entry does not lead to is told, at the key of the configuration."""
    write(tmp_path, {"notes.txt": "", "empty/_private.py": "", "bare/a.py": "x = 1\n"})
    (fault,) = faults(entry)
    assert fault.place == "worker.transformers"
    assert problem in fault.problem
    assert fault.cure


def test_a_dot_in_a_file_name_is_a_fault(tmp_path: Path) -> None:
    """Such a file cannot be a module, and is not skipped silently."""
    write(tmp_path / "t", {"a.py": plain("a"), "a.v2.py": plain("b")})
    assert places("t") == ["t/a.v2.py:1"]


def test_a_hidden_transform_is_a_fault(tmp_path: Path) -> None:
    """A second function of one name in a module would make the first vanish silently."""
    write(tmp_path / "t", {"a.py": plain("a", '@transform("other")\ndef a(document): ...\n')})
    (fault,) = faults("t")
    assert (fault.place, fault.problem) == (
        "t/a.py:4",
        "transform 'a' is hidden by the function 'a' in line 7.",
    )


def test_doubles_in_two_modules_name_both_places(tmp_path: Path) -> None:
    """Two transforms of one name and two declarations of one collection: both places are told."""
    write(tmp_path / "t", {"a.py": plain("a"), "b.py": plain("a")})
    transform, collection = map(str, faults("t"))
    assert "t/b.py:4" in transform
    assert "t/a.py:4" in transform
    assert "t/b.py:2" in collection
    assert "t/a.py:2" in collection


def test_a_collection_that_no_module_declares_is_a_fault(tmp_path: Path) -> None:
    """One that is reached through another package, or made on the way, is told with the transform's line."""
    write(tmp_path, {"other_package.py": HEAD + 'out = DerivedCollection("x")\n'})
    text = HEAD + dedent("""
        import other_package
        @transform("raw")
        def a(document):
            yield other_package.out.record(1, {})
            yield DerivedCollection("y").record(1, {})
        """)
    write(tmp_path / "t", {"a.py": text})
    made, undeclared = faults("t")
    assert made.place == "t/a.py:7"
    assert undeclared.place == "t/a.py:5"
    assert "names derived collection 'x'" in undeclared.problem


def test_an_imported_foreign_collection_is_declared_by_the_import(tmp_path: Path) -> None:
    """A collection of another package may be used when a transform module imports it by its name."""
    write(tmp_path, {"other_package.py": HEAD + 'out = DerivedCollection("x")\n'})
    text = (
        HEAD
        + 'from other_package import out\n@transform("raw")\ndef a(document):\n    yield out.record(1, {})\n'
    )
    write(tmp_path / "t", {"a.py": text})
    assert load(["t"], entry_points=False).places == {"x": "t/a.py:2"}


def test_a_record_of_an_unnamed_collection_is_a_failure(tmp_path: Path) -> None:
    """A transform that reaches a collection behind the loader's back is told when it yields into it."""
    text = HEAD + dedent("""
        out = DerivedCollection("out")
        @transform("raw")
        def a(document):
            yield globals()["out"].record(1, {})
        """)
    write(tmp_path / "t", {"a.py": text})
    transform = load(["t"], entry_points=False).transforms["a"]
    outcome = derive(transform, {"_id": 1}, 10)
    assert isinstance(outcome, Failure)
    assert "'out', which the transform's code does not name" in outcome.reason


#: What contradicts the two sections in `SHARED`, with what the fault says.
MISUSES = {
    "yield made.record(1, {})": "'made' is records here, and shared records at t/a.py:3",
    'yield made.item(1, "one", 2, {})': "'made.one' is a list of items here, and a section at t/a.py:3",
    'yield made.section(1, "a.b", {})': "a section or list of 'made' has a name that has a dot",
    'yield made.item(1, name="_src", item_key=2, fields={})': "has a name that is '_src'",
    "yield made.section(1, 5, {})": "has a name that must be a string",
}

SHARED = HEAD + dedent("""
    made = DerivedCollection("made")
    def helper(document): yield made.section(1, "one", {}); yield made.section(2, "two", {})
    """).lstrip("\n")


@pytest.mark.parametrize("misuse", MISUSES)
def test_contradictions_between_uses_are_faults(tmp_path: Path, misuse: str) -> None:
    """Code that makes records here and sections there, or names what cannot be, is refused at start, with the line."""
    text = HEAD + f'from .a import made\n@transform("raw")\ndef b(document):\n    {misuse}\n'
    write(tmp_path / "t", {"a.py": SHARED, "b.py": text})
    (fault,) = faults("t")
    assert MISUSES[misuse] in str(fault)
    assert fault.place.startswith("t/b.py:")


def test_sections_and_items_of_several_modules_are_no_fault(tmp_path: Path) -> None:
    """Several modules may contribute to one collection, each with names of its own."""
    text = (
        HEAD
        + 'from .a import made\n@transform("raw")\ndef b(document):\n    yield made.item(1, "three", 1, {})\n'
    )
    write(tmp_path / "t", {"a.py": SHARED, "b.py": text})
    assert load(["t"], entry_points=False).transforms.keys() == {"b"}
