"""`distributary new`: what it writes works, and it overwrites nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from distributary.cli import command_line
from distributary.operate.scaffold import RESERVED, Scaffold, problem_of
from distributary.plugins import load


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)


def passes(test: str) -> None:
    """Run a scaffolded test with a pytest of its own, warnings as errors."""
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_what_it_writes_works(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a configuration: a module that loads and a test that passes as written, and what to do next."""
    assert command_line(["new", "members"]) == 0
    assert capsys.readouterr().out == (
        "Wrote transformers/members.py\n"
        "Wrote tests/test_members.py\n"
        "Go on with:\n"
        "  pytest tests/test_members.py\n"
        "  distributary preview members\n"
    )
    (transform,) = load(["transformers"], entry_points=False).transforms.values()
    assert (transform.name, transform.source) == ("members", "members")
    passes("tests/test_members.py")


def test_folders_and_source_may_be_others(tmp_path: Path) -> None:
    """The test finds its module wherever the two lie and wherever pytest is started."""
    arguments = [
        "--source",
        'raw "members"',
        "--folder",
        "deep/in here",
        "--tests",
        str(tmp_path / "other/tests"),
    ]
    assert command_line(["new", "members", *arguments]) == 0
    (transform,) = load(["deep/in here"], entry_points=False).transforms.values()
    assert transform.source == 'raw "members"'
    passes("other/tests/test_members.py")


def test_module_and_test_may_lie_in_one_folder() -> None:
    """The test finds a module beside it."""
    assert command_line(["new", "members", "--folder", "all", "--tests", "all"]) == 0
    passes("all/test_members.py")


@pytest.mark.parametrize("there", ["transformers/members.py", "tests/test_members.py"])
def test_nothing_is_overwritten(there: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that exists ends it with 1 and a cure, and the other one is not written."""
    file = Path(there)
    file.parent.mkdir()
    file.write_text("mine", encoding="utf-8")
    assert command_line(["new", "members"]) == 1
    err = capsys.readouterr().err
    assert f"{there} exists already." in err
    assert "cure: Choose another name" in err
    assert file.read_text(encoding="utf-8") == "mine"
    assert [path for path in Path().rglob("*.py") if path != file] == []


@pytest.mark.parametrize(
    "name", ["my-members", "class", "1st", "_members", "", "mütter", "transform", "x" * 101]
)
def test_a_name_that_cannot_be_is_a_usage_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with 2, says why, and writes nothing."""
    assert command_line(["new", "--", name]) == 2
    assert "Choose another name" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with 1 and a cure."""
    Path("transformers").write_text("a file", encoding="utf-8")
    assert command_line(["new", "members"]) == 1
    assert "transformers" in (err := capsys.readouterr().err)
    assert "--folder" in err


@pytest.mark.parametrize("option", [[], ["-c", "distributary.toml"]])
def test_the_folder_is_the_configuration_s_first(option: list[str]) -> None:
    """Of a configuration only that key is looked at: it may lack what a worker needs."""
    text = '[worker]\ntransformers = ["some_package", "./one.py", "ours", "theirs"]\n'
    Path("distributary.toml").write_text(text, encoding="utf-8")
    Path("ours").mkdir()
    assert command_line(["new", "members", *option]) == 0
    assert Path("ours/members.py").exists()


def test_a_configuration_elsewhere_names_a_folder_beside_it(tmp_path: Path) -> None:
    """A relative folder is resolved against the file's folder."""
    Path("there").mkdir()
    Path("there/my.toml").write_text("", encoding="utf-8")
    assert command_line(["new", "members", "-c", "there/my.toml"]) == 0
    assert Path("there/transformers/members.py").exists()
    passes("tests/test_members.py")


def test_a_configuration_that_cannot_be_read_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """One that was named must be there."""
    assert command_line(["new", "members", "-c", "none.toml"]) == 2
    assert "none.toml" in capsys.readouterr().err


def test_no_name_that_the_files_use_can_be_given() -> None:
    """A transform of such a name would hide what the module or the test needs."""
    used = set[str]()
    scaffold = Scaffold("members", "members", Path("transformers"), Path("tests"))
    for path in scaffold.write():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used - {"members", "__file__"} <= RESERVED
    assert all(problem_of(name) for name in RESERVED)
