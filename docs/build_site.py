"""Build the site from the pages: `python docs/build_site.py`. Whatever Sphinx warns of is an error.

The pages are plain Markdown that links to its neighbours, so that they read the same on a code host. Here they are
copied to where Sphinx finds them, with everything of the repository that they link to: other pages as pages, files as
pages that show them, folders as pages that list them. What stands in the navigation is what `index.md` lists.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import click
from pygments.lexers import find_lexer_class_for_filename
from sphinx.cmd.build import build_main

DOCS = Path(__file__).parent
ROOT = DOCS.parent

#: The page of a folder, whose lists are the navigation below it.
_CONTENTS = ("index.md", "README.md")

_IMAGES = frozenset({".png", ".svg"})

_LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
_HEADING_OR_ENTRY = re.compile(
    r"^## (?P<heading>.+)$|^(?:-|\d+\.) \[(?P<title>[^\]]+)\]\((?P<target>[^)\s#:]+)\)", re.MULTILINE
)

#: What lists the files that pages link to, in the last part of the navigation.
_FILES = PurePosixPath("files/index.md")


class Entry(NamedTuple):
    """A line of the navigation; `target` lies in the repository."""

    heading: str
    title: str
    target: Path


class Site:
    """The pages of a repository whose documentation lies in `docs`, as Sphinx is given them in `staged`."""

    def __init__(self, root: Path, staged: Path) -> None:
        self._root = root
        self._docs = root / "docs"
        self._staged = staged
        self._seen: set[Path] = set()
        self._named: set[Path] = set()

    def stage(self) -> None:
        """Write all pages and what they link to."""
        todo = sorted(self._docs.rglob("*.md"))
        while todo:
            path = todo.pop()
            if path not in self._seen:
                self._seen.add(path)
                todo += self._put(path)
        self._write(
            _FILES, f"# Files\n\nWhat the pages link to.\n{_toctree('', self._others(), hidden=False)}"
        )
        self._append_contents()

    def _put(self, path: Path) -> list[Path]:
        """Stage one file or folder, and give what it links to."""
        place = self.place(path)
        if path.suffix == ".md":
            text, linked = self._relinked(path)
            self._write(place, text)
        elif path.suffix in _IMAGES:
            self._write(place, path.read_text("utf-8"))
            linked = []
        elif path.is_dir():
            linked = _files(path)
            self._write(place, self._listing(path, linked))
        else:
            self._write(place, _shown(self._name(path), path.read_text("utf-8")))
            linked = []
        return linked

    def place(self, path: Path) -> PurePosixPath:
        """Give where something of the repository lies in the site."""
        if path.suffix != ".md" and path.suffix not in _IMAGES:
            return _FILES.parent / f"{self._name(path).rstrip('/')}.md"
        home = self._docs if path.is_relative_to(self._docs) else self._root
        return PurePosixPath(path.relative_to(home).as_posix())

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix() + ("/" if path.is_dir() else "")

    def _relinked(self, page: Path) -> tuple[str, list[Path]]:
        """Give a page with its links as they are in the site, and what they lead to; broken ones stay."""
        linked: list[Path] = []

        def link(found: re.Match[str]) -> str:
            target = Path(os.path.normpath(page.parent / found["target"]))
            if not (target.exists() and target.is_relative_to(self._root)):
                return found[0]
            linked.append(target)
            return self._link(page, target) + (found["anchor"] or "")

        return _LINK.sub(link, page.read_text("utf-8")), linked

    def _link(self, page: Path, target: Path) -> str:
        return os.path.relpath(self.place(target), self.place(page).parent)

    def _listing(self, folder: Path, files: Iterable[Path]) -> str:
        lines = (f"- [`{self._name(file)}`]({self._link(folder, file)})\n" for file in files)
        return f"# {self._name(folder)}\n\n{''.join(lines)}"

    def _append_contents(self) -> None:
        """Let each page of contents lead Sphinx's navigation, in parts that are called like its headings."""
        for path in self._contents():
            trees = self._trees(path)
            if path == self._docs / "index.md":
                trees.append(_toctree("", [("Files", _FILES.as_posix())]))
            with (self._staged / self.place(path)).open("a", encoding="utf-8") as page:
                page.writelines(trees)

    def _trees(self, path: Path) -> list[str]:
        parts: dict[str, list[tuple[str, str]]] = {}
        for entry in _entries(path):
            parts.setdefault(entry.heading, []).append((entry.title, self._link(path, entry.target)))
        return [_toctree(heading, entries) for heading, entries in parts.items()]

    def _contents(self) -> list[Path]:
        return [path for path in self._seen if path.name in _CONTENTS and path.is_relative_to(self._docs)]

    def _others(self) -> list[tuple[str, str]]:
        """Give what is shown and stands in no list: it is found under the files."""
        listed = {entry.target for path in self._contents() for entry in _entries(path)}
        shown = (
            path for path in self._seen if path.suffix not in _IMAGES and not path.is_relative_to(self._docs)
        )
        return [
            (self._name(path), os.path.relpath(self.place(path), _FILES.parent))
            for path in sorted(shown)
            if path not in listed
        ]

    def _write(self, place: PurePosixPath, text: str) -> None:
        path = self._staged / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def _entries(page: Path) -> Iterator[Entry]:
    """Give what the lists of a page name first in each line, under the heading above it."""
    heading = ""
    for found in _HEADING_OR_ENTRY.finditer(page.read_text("utf-8")):
        if found["heading"]:
            heading = found["heading"]
        else:
            target = Path(os.path.normpath(page.parent / found["target"]))
            yield Entry(heading, " ".join(found["title"].split()), target)


def _toctree(caption: str, entries: Iterable[tuple[str, str]], *, hidden: bool = True) -> str:
    options = [*([":hidden:"] if hidden else []), *([f":caption: {caption}"] if caption else [])]
    lines = [f"{title} <{target.removesuffix('.md')}>" for title, target in entries]
    return "\n".join(["", "```{toctree}", *options, "", *lines, "```", ""])


def _files(folder: Path) -> list[Path]:
    """Give the files below a folder, without what tools leave there."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [
        path
        for path in found
        if not any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)
    ]


def _shown(name: str, text: str) -> str:
    """Give a page that shows a file."""
    lexer = find_lexer_class_for_filename(name)
    fence = "`" * (3 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"# {name}\n\n{fence}{lexer.aliases[0] if lexer else 'text'}\n{text.rstrip()}\n{fence}\n"


def build(root: Path, output: Path) -> bool:
    """Build the site of a repository into a folder, from nothing; False when Sphinx had anything to say."""
    staged, doctrees = output.with_name(f"{output.name}-pages"), output.with_name(f"{output.name}-doctrees")
    for folder in (staged, doctrees, output):
        shutil.rmtree(folder, ignore_errors=True)
    Site(root, staged).stage()
    options = ["--quiet", "--fail-on-warning", "--conf-dir", str(DOCS)]
    code = build_main([*options, "--doctree-dir", str(doctrees), str(staged), str(output)])
    return code == 0


@click.command()
@click.option("--root", type=click.Path(path_type=Path, exists=True), default=ROOT, help="Whose site.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to; build/site by default.")
def command(root: Path, output: Path | None) -> None:
    """Build the documentation site."""
    place = output or root / "build/site"
    if not build(root.resolve(), place.resolve()):
        sys.exit("The site has faults: see the warnings above.")
    click.echo(f"Built {place}/index.html")


if __name__ == "__main__":
    command()
