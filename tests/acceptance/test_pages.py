"""The pages of the documentation as a reader follows them, and what runs them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from distributary.testing.server import embedded_or_skip
from tests.acceptance import pages

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    DOCS / "start.md",
    DOCS / "transforms.md",
    DOCS / "upgrade.md",
    *sorted((DOCS / "tasks").glob("*.md")),
]

#: A history that can be outgrown in a second.
SMALL = ["--oplogSize", "1", "--syncdelay", "1"]

#: The URI where nothing has to be connected to.
NOWHERE = "mongodb://127.0.0.1:9/"


@pytest.fixture
def uri() -> Iterator[str]:
    """Give the URI of a MongoDB of the page's own, whose databases have the names that the pages say."""
    with embedded_or_skip(arguments=SMALL) as server:
        yield server.uri


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_written(page: Path, uri: str, tmp_path: Path) -> None:
    """Every command of a page does what the page says, in the order of the page, beginning with an empty folder."""
    pages.run(page, tmp_path, uri)


def carried_out(folder: Path, *lines: str) -> Path:
    """Run a page of these lines, and give the folder in which that was done."""
    page, home = folder / "page.md", folder / "home"
    home.mkdir()
    page.write_text("\n".join([*lines, ""]), encoding="utf-8")
    pages.run(page, home, NOWHERE)
    return home


def console(*lines: str) -> list[str]:
    """Give a console block."""
    return ["```console", *lines, "```"]


def test_files_scripts_and_commands_are_carried_out_in_order(tmp_path: Path) -> None:
    """Blocks of a list and in comments are run too; a shell, its variables and its jobs last for the whole page."""
    home = carried_out(
        tmp_path,
        *["```toml", "# a/b.toml", f'uri = "{pages.URI}"', "```"],
        *["```python", "from pathlib import Path", "Path('c').write_text(str(client.raw.name))", "```"],
        *["1. First", "", "   ```console", "   $ NAME=$(cat c)", "   ```", ""],
        *["<!--", *console("$ sleep 60 &"), "-->"],
        *["```json", "{this is not run}", "```"],
        *console("$ echo $NAME; kill %1; wait %1", "raw", "…", "$ echo $?", "143"),
    )
    assert (home / "a/b.toml").read_text(encoding="utf-8") == f'# a/b.toml\nuri = "{NOWHERE}"\n'


@pytest.mark.parametrize(
    "shown",
    [
        ["one 1", "two 2", "three 3"],
        ["one …", "… 2", "th…3"],
        ["…"],
        ["…", "three 3", "…"],
        ["one 1", "  …", "three 3"],
    ],
)
def test_dots_stand_for_what_is_left_out(tmp_path: Path, shown: list[str]) -> None:
    """Within a line they are any text, alone any number of lines, none included."""
    carried_out(tmp_path, *console(r"$ printf 'one 1\ntwo 2  \nthree 3\n'", *shown))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (console("$ true", "$ echo 2", "3"), r"page.md:3: `echo 2` printed other"),
        (console("$ echo 2"), r"page.md:2: `echo 2` printed other"),
        (console("$ true", "more"), r"page.md:2: `true` printed other"),
        (console("$ echo one; echo two", "one…"), r"page.md:2: .* printed other"),
        (console("$ echo told >&2"), r"page.md:2: .* printed other"),
        (console("$ false", "$ touch not-reached"), r"page.md:2: `false` ended with 1"),
        (console("$ (exit 4)", "$ echo $?", "3"), r"page.md:3: `echo \$\?` printed other"),
        (["", "```python", "raise SystemExit(3)", "```"], r"page.md:3: .* ended with 3"),
        (console("$ exit 0", "$ true"), r"page.md:2: .* did not end"),
    ],
)
def test_a_page_that_is_not_so_fails(tmp_path: Path, lines: list[str], said: str) -> None:
    """Other output, output that is not told, and an exit code that is not told name the line of the page."""
    with pytest.raises(pytest.fail.Exception, match=f"(?s){said}"):
        carried_out(tmp_path, *lines)
    assert not (tmp_path / "home/not-reached").exists()


def test_a_command_that_does_not_end_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is killed, with all that was started, and named."""
    monkeypatch.setattr(pages, "PATIENCE", 0.5)
    with pytest.raises(pytest.fail.Exception, match=r"page.md:3: `sleep 60` did not end within 0.5 s"):
        carried_out(tmp_path, *console("$ true", "$ sleep 60"))


@pytest.mark.parametrize("block", [["```sh", "true", "```"], console("true")])
def test_a_block_that_means_nothing_is_refused(tmp_path: Path, block: list[str]) -> None:
    """No block is passed over in silence because of how it is written."""
    with pytest.raises(ValueError, match="line"):
        carried_out(tmp_path, *block)
