"""The command line: one file per verb, imported when it is asked for, so that `--help` is quick."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

import click

#: What shells report of a process that SIGINT ended.
INTERRUPTED = 130


class Verb(NamedTuple):
    """Where a verb's `command` is, and the line that the list of verbs shows for it."""

    module: str
    summary: str


VERBS: dict[str, Verb] = {
    "run": Verb("distributary.cli.run", "Keep derived collections equal to their transforms, always on."),
    "verify": Verb("distributary.cli.verify", "Compare derived collections with a recomputation."),
    "backfill": Verb(
        "distributary.cli.backfill", "Derive existing documents again, and remove what lost its source."
    ),
    "replay": Verb("distributary.cli.replay", "Derive again what changed in a part of the history."),
    "rebuild": Verb(
        "distributary.cli.rebuild", "Build derived collections anew beside the live ones, and swap."
    ),
    "check": Verb("distributary.cli.check", "Look whether everything that a worker needs is there."),
    "preview": Verb(
        "distributary.cli.preview", "Show what a transform yields now, and what that would change."
    ),
    "status": Verb("distributary.cli.status", "Show workers, positions, lag and dead letters."),
    "dead-letters": Verb(
        "distributary.cli.dead_letters",
        "Show the documents that could not be derived, derive them again, or forget them.",
    ),
    "jobs": Verb("distributary.cli.jobs", "Show the work that the worker was asked for, and halt it."),
    "position": Verb(
        "distributary.cli.position", "Show how far the worker is, read resume tokens, and move it by hand."
    ),
    "trace": Verb(
        "distributary.cli.trace", "Show where a derived record comes from, or what a document became."
    ),
    "bigquery-schema": Verb(
        "distributary.cli.bigquery_schema", "Print the BigQuery table that holds a derived collection."
    ),
    "new": Verb("distributary.cli.new", "Write a transform module and its test, to begin with."),
    "demo": Verb("distributary.cli.demo", "See it all at work on this machine, with a MongoDB of its own."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when one is called, and not to list them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Give the verbs in the order in which a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a verb; None when there is none of this name."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(VERBS[cmd_name].module).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


@click.group(
    cls=LazyGroup,
    subcommand_metavar="VERB [OPTIONS] [ARGUMENTS]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 fine; 1 failed, or differences were found; 2 usage or configuration; 3 environment;"
    " 4 position lost.",
)
@click.version_option(package_name="distributary")
def distributary() -> None:
    """Keep derived MongoDB collections equal to pure functions of raw ones."""


def command_line(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code; a failure has been told on stderr when this returns.

    A verb's function may return its exit code; None is 0.
    """
    try:
        result = distributary.main(arguments, prog_name="distributary", standalone_mode=False)
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        return _nobody_reads()
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - the last place that can tell of a failure
        from distributary.cli.failures import tell  # noqa: PLC0415 - the driver is slow to import

        return tell(error)
    return result if isinstance(result, int) else 0


def _nobody_reads() -> int:
    """Let what is still to be written go nowhere, or the interpreter would complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def main() -> NoReturn:
    """Run the command line with the process's arguments and leave with its exit code."""
    sys.exit(command_line())
