"""`distributary bigquery-schema`: the table in which BigQuery keeps a derived collection."""

import json
import re
from pathlib import Path

import click

from distributary.assemble import connect, registry
from distributary.cli.common import config_option, emit_json, json_option, open_config
from distributary.cli.difference import legible
from distributary.config import Config
from distributary.derive.records import DerivedCollection
from distributary.derive.registry import Registry
from distributary.operate.tables import Tabled, chosen, of_model, of_sample

#: Records that are drawn when nothing says how many.
SAMPLE = 1000

#: Minutes that queries may lag behind when nothing says how many.
STALENESS = 15

#: What BigQuery takes as the name of a table: project (of a domain, perhaps), dataset and table.
_TABLE = re.compile(r"[a-z][a-z0-9.-]*(:[a-z0-9-]+)?\.\w+\.[\w-]+", re.ASCII)


def _table_name(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or _TABLE.fullmatch(value):
        return value
    raise click.BadParameter(f"{value!r} is not of the form project.dataset.table.")


@click.command("bigquery-schema")
@config_option
@json_option
@click.argument("collection")
@click.option("--ddl", is_flag=True, help="Print the statement that creates the table; wants --table.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Look at N stored records and not at the model; {SAMPLE} when the collection has none.",
)
@click.option(
    "--table", callback=_table_name, metavar="PROJECT.DATASET.TABLE", help="What the table is called."
)
@click.option(
    "--max-staleness",
    type=click.IntRange(min=0),
    metavar="MINUTES",
    default=STALENESS,
    show_default=True,
    help="How old a table may be that a query reads, before BigQuery applies what has come since.",
)
def command(
    config_path: Path | None,
    collection: str,
    sample: int | None,
    table: str | None,
    max_staleness: int,
    *,
    ddl: bool,
    as_json: bool,
) -> None:
    """Print the table schema for a derived COLLECTION that is published with format = "bigquery".

    The columns are those of the model that the collection declares, else those that stored records suggest. Without
    --ddl it is the JSON that `bq` takes as a schema. What may not fit is told on stderr. Nothing is written.
    """
    if ddl and table is None:
        raise click.UsageError("--ddl wants --table PROJECT.DATASET.TABLE.")
    config = open_config(config_path)
    plugged = registry(config)
    found = _tabled(config, plugged, chosen(plugged, collection), sample)
    statement = found.table.ddl(table, max_staleness) if table else None
    if as_json:
        emit_json({**found.answer(), "ddl": statement})
        return
    _tell(found)
    click.echo(statement if ddl else json.dumps(found.table.schema(), indent=2))


def _tabled(config: Config, plugged: Registry, collection: DerivedCollection, sample: int | None) -> Tabled:
    """Read the model where there is one and no sample is asked for, without a connection."""
    if collection.model is not None and sample is None:
        return of_model(plugged, collection)
    with connect(config) as databases:
        return of_sample(databases.derived, collection, sample or SAMPLE)


def _tell(found: Tabled) -> None:
    for note in found.table.notes:
        click.echo(legible(f"note: {note}"), err=True)
