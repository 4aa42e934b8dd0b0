"""`distributary new`: a transform module and its test, to begin with."""

from importlib.util import find_spec
from pathlib import Path

import click

from distributary.cli.common import config_option
from distributary.config import transformers
from distributary.operate.scaffold import Scaffold, problem_of
from distributary.plugins import DEFAULT_FOLDER, shown

#: What the test needs beside distributary.
_FOR_TESTS = ("pytest", "mongomock")


def _name(_: click.Context, __: click.Parameter, name: str) -> str:
    if problem := problem_of(name):
        raise click.BadParameter(f"{name!r} {problem}. Choose another name.")
    return name


@click.command("new")
@config_option
@click.argument("name", callback=_name)
@click.option("--source", metavar="COLLECTION", help="The source collection; NAME without it.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Where the module goes; without it the first folder in worker.transformers.",
)
@click.option(
    "--tests",
    type=click.Path(path_type=Path),
    metavar="PATH",
    default=Path("tests"),
    show_default=True,
    help="Where its test goes.",
)
def command(
    config_path: Path | None, name: str, source: str | None, folder: Path | None, tests: Path
) -> None:
    """Write a transform module that works, and a test that passes, to begin with.

    NAME is that of the transform and of its module. Needs no server and no configuration; no file is overwritten.
    """
    scaffold = Scaffold(name, source or name, folder or _first_folder(config_path), tests)
    for path in scaffold.write():
        click.echo(f"Wrote {shown(path)}")
    click.echo("Go on with:")
    if not all(map(find_spec, _FOR_TESTS)):
        click.echo("  pip install 'distributary[testing]'")
    click.echo(f"  pytest {shown(scaffold.test)}")
    click.echo(f"  distributary preview {name}")


def _first_folder(config_path: Path | None) -> Path:
    """Give the first folder of the configuration, and the default one when it names none."""
    entries = map(Path, transformers(config_path))
    folders = (entry for entry in entries if entry.is_absolute() and entry.suffix != ".py")
    return Path(shown(next(folders, Path(DEFAULT_FOLDER))))
