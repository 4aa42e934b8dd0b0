"""The documentation site, built from small repositories."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: A repository whose pages are as they should be.
GOOD = {
    "README.md": "# All\n\nSee [one](docs/tasks/one.md#the-second-part) and [why](docs/why/README.md).\n",
    "deploy/unit.service": "[Service]\nExecStart=/bin/true\n",
    "deploy/more/a.py": "text = '```'\n",
    "docs/index.md": (
        "# Start\n\n![It](it.svg)\n\n## Tasks\n\n- [Task one](tasks/one.md): do it\n\n## Other\n\n"
        "- [Why](why/README.md)\n- [All](../README.md)\n"
    ),
    "docs/it.svg": '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>\n',
    "docs/tasks/one.md": (
        "# One\n\n## The second part\n\n[unit](../../deploy/unit.service), [more](../../deploy/more)\n"
    ),
    "docs/why/README.md": "# Why\n\n1. [Because](1.md)\n",
    "docs/why/1.md": "# Because\n\n[All](../../README.md)\n",
}

#: What loads something when a page is opened.
_LOADS = re.compile(r"""<(?:script|img|link|iframe)[^>]+(?:src|href)=["'](?:https?:)?//[^"']+""")


def site(folder: Path, pages: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Build the site of a repository."""
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    command = [sys.executable, str(ROOT / "docs/build_site.py"), "--root", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_pages_files_and_folders_are_pages_of_the_site(tmp_path: Path) -> None:
    """Links as a code host has them lead to pages, headings, files and folders; nothing comes from elsewhere."""
    built = site(tmp_path, GOOD)
    assert built.returncode == 0, built.stderr
    home = tmp_path / "build/site"
    start, one = (home / "index.html").read_text("utf-8"), (home / "tasks/one.html").read_text("utf-8")
    for page in ("tasks/one.html", "why/README.html", "README.html", "files/index.html"):
        assert f'class="reference internal" href="{page}"' in start, page
    assert 'href="../files/deploy/unit.service.html"' in one
    assert 'href="../files/deploy/more.html"' in one
    assert "ExecStart" in (home / "files/deploy/unit.service.html").read_text("utf-8")
    assert "a.py.html" in (home / "files/deploy/more.html").read_text("utf-8")
    assert 'href="tasks/one.html#the-second-part"' in (home / "README.html").read_text("utf-8")
    assert not [found for page in home.rglob("*.html") for found in _LOADS.findall(page.read_text("utf-8"))]


@pytest.mark.parametrize(
    ("page", "text", "said"),
    [
        ("docs/tasks/one.md", "[gone](../gone.md)\n", r"one.md:5: WARNING: .*gone.md"),
        ("docs/tasks/one.md", "[gone](../why/1.md#nowhere)\n", r"one.md:5: WARNING: .*nowhere"),
        ("docs/tasks/one.md", "[gone](../../deploy/gone.service)\n", r"one.md:5: WARNING: .*gone.service"),
        (
            "docs/lonely.md",
            "[all](../README.md)\n",
            r"lonely.md: WARNING: document isn't included in any toctree",
        ),
    ],
    ids=["page", "heading", "file", "navigation"],
)
def test_what_leads_nowhere_fails(tmp_path: Path, page: str, text: str, said: str) -> None:
    """A link to a page, a heading or a file that is not there, and a page in no list, are named."""
    built = site(tmp_path, GOOD | {page: f"# One\n\n## The second part\n\n{text}"})
    assert built.returncode == 1
    assert re.search(said, built.stderr), built.stderr
