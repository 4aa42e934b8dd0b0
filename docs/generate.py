"""Write the reference pages from the code: `python docs/generate.py`.

`--check` compares instead, and holds the pages against the tests that they name.
"""

from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Literal, get_args, get_origin

import click
from check_guarantees import faults
from check_log import faults as log_faults
from pydantic import ByteSize, SecretStr
from pydantic.fields import FieldInfo

from distributary.cli import distributary
from distributary.config import KEYS, SECTIONS, Key, load
from distributary.metrics import DECLARED, LABELS, Metric
from distributary.operate.privileges import FIXES, NEEDS, Need, Role
from distributary.operate.roles import roles, script

REFERENCE = Path(__file__).parent / "reference"

#: A configuration with the default names.
EXAMPLE = Path(__file__).parents[1] / "deploy" / "distributary.toml"

#: Columns of the help texts.
WIDTH = 100

_KINDS: dict[object, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    ByteSize: "integer, or text with a unit",
    SecretStr: "secret text",
}

_CONFIGURATION = """\
# Configuration

One TOML file, `./distributary.toml` or the one that `--config` names, and the environment over it. No file is
needed when the environment says it all. Lists in a variable are JSON (`["a", "b"]`) or separated by commas
(`a,b`). A secret may lie in a file of its own: `…_FILE` names it.
[`deploy/distributary.toml`](../../deploy/distributary.toml) is an example with every key. All faults are
reported at once.
"""

_COMMAND_LINE = """\
# Command line

`distributary VERB`, or `python -m distributary VERB`. Options follow the verb.
"""


def configuration() -> str:
    """Give the page of the sections and keys."""
    return "\n".join([_CONFIGURATION, *(_section(name) for name in SECTIONS)])


def _section(name: str) -> str:
    head = ["| key | type | default | meaning | variable |", "|---|---|---|---|---|"]
    rows = [_row(key) for key in KEYS if key.section == name]
    return "\n".join([f"## [{name}]", "", cleandoc(SECTIONS[name].__doc__ or ""), "", *head, *rows, ""])


def _row(key: Key) -> str:
    variable = f"`{key.variable}`" + (f" or `{key.variable}_FILE`" if key.is_secret else "")
    cells = [f"`{key.name}`", _kind(key.field.annotation), _default(key.field), _meaning(key), variable]
    return f"| {' | '.join(cells)} |"


def _kind(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list of texts"
    return _KINDS[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        extra = field.json_schema_extra
        return str(extra["default"]) if isinstance(extra, dict) else "required"
    value = field.default
    if isinstance(value, ByteSize):
        return f"`{int(value)}` ({value.human_readable()})"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(_toml, value))}]`"
    return f"`{_toml(value)}`"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _meaning(key: Key) -> str:
    if not key.field.description:
        raise ValueError(f"{key} has no description")
    return key.field.description.replace("|", "\\|")


def command_line() -> str:
    """Give the page of the verbs, each with its help."""
    return "\n".join(
        [_COMMAND_LINE, *(_help(names, command) for names, command in _below(["distributary"], distributary))]
    )


def _below(names: list[str], command: click.Command) -> Iterator[tuple[list[str], click.Command]]:
    """Give a command and those under it; a verb whose module is missing is an error here."""
    yield names, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is None:
                raise LookupError(f"{' '.join(names)} lists {name}, but has no such command")
            yield from _below([*names, name], below)


def _help(names: list[str], command: click.Command) -> str:
    inherited = {**distributary.context_settings, **command.context_settings}
    settings = {**inherited, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=" ".join(names), **settings)
    return f"## {' '.join(names)}\n\n```text\n{command.get_help(context)}\n```\n"


_PRIVILEGES = """\
# Privileges

What the users in `source.uri` and `derived.uri` must be allowed to do. `distributary check` names what is missing.
Without the optional ones a worker runs all the same, but for what the last column says. What is needed to write derived
records may be granted on each derived collection instead. Everything else is needed on the database as a whole: the
names of the collections that a rebuild fills are drawn, and the state database gets new collections as shared records
come.

| on | actions | optional | to |
|---|---|---|---|
"""

_ROLE = """\

## A role

`distributary check --roles` prints a script for `mongosh` with the roles of a configuration, one for each of its
connection strings, and with `--json` the `createRole` commands; it asks no server. For
`deploy/distributary.toml`:

```javascript
"""

_AFTER = """\
```

The user has no other role; [Security](../security.md) shows how it is created. `distributary check` warns of roles that
allow more. It lets pass the built-in roles `read` on the source database and `readWrite` on the derived and the state
database, which are all that is needed but for what is optional on other databases.
"""

#: What the table calls the places of needs.
_PLACES = {
    Role.SOURCE: "the source database",
    Role.CLUSTER: "the source's cluster",
    Role.OPLOG: "`local.oplog.rs` of the source",
    Role.DERIVED: "the derived database",
    Role.STATE: "the state database",
}


def privileges() -> str:
    """Give the page of what the users must be allowed to do."""
    return "".join(
        [_PRIVILEGES, *map(_need, [*NEEDS, *FIXES]), _ROLE, script(roles(load(EXAMPLE, {}))), _AFTER]
    )


def _need(need: Need) -> str:
    actions = ", ".join(f"`{each}`" for each in need.actions)
    return f"| {_PLACES[need.role]} | {actions} | {'yes' if need.optional else ''} | {need.purpose} |\n"


_METRICS = """\
# Metrics and health

`distributary run` answers GET and HEAD on `http.host` and `http.port` (127.0.0.1 and 9464; 0: no endpoint), from
before it asks for the lease until it ends, with no more than 16 requests at a time and 5 s for each. Several workers
on one machine need several ports.

| path | answers |
|---|---|
| `/metrics` | the metrics below, in Prometheus' text form |
| `/healthz` | 200, or 503 when the process should be restarted |
| `/readyz` | 200 when the process works or stands by, else 503 |

The bodies of `/healthz` and `/readyz` are JSON that says why.

A process should be restarted when the work, the renewal of the lease or publishing made no step for 120 s, and its
thread waits neither for MongoDB nor for Pub/Sub nor for a transform. A worker that is behind, or whose MongoDB or
Pub/Sub is away, is healthy: a restart would not help. A transform that never ends is no reason either, since it would
hold up the next process at the same document; `distributary status` names it. Code that holds the interpreter itself
(a regular expression that backtracks without end) lets no request be answered, so a probe needs a time-out.

A process is ready when it holds the lease and its stream is open, or when another one holds the lease and this one
stands by. It is not ready while it starts, stops or tries again after a failure.

Counters begin at 0 with the process, and `rate` and `increase` see through that. What only the holder of the lease
knows is NaN, 0 or absent in a standby. What is counted "as of the last look" is counted every 5 s, less often where
counting takes long. Labels take only the values that are named here; whatever else there is (shadows that a rebuild
fills, names that are no longer plugged in) counts as `other`.

| metric | type | unit | labels | meaning |
|---|---|---|---|---|
"""


def metrics() -> str:
    """Give the page of the metrics."""
    names = dict.fromkeys(label for metric in DECLARED for label in metric.labels)
    labels = [f"| `{name}` | {LABELS[name]} |\n" for name in names]
    return "".join([_METRICS, *map(_metric, DECLARED), "\n| label | values |\n|---|---|\n", *labels])


def _metric(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.full_name}` | {metric.kind.value} | {metric.unit} | {labels} | {metric.help} |\n"


#: The generated pages and what writes them.
PAGES = {
    "configuration.md": configuration,
    "command-line.md": command_line,
    "metrics.md": metrics,
    "privileges.md": privileges,
}


@click.command()
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing; fail when a page is stale, names a test that does not exist or misses a line of the log.",
)
def generate(*, check: bool) -> None:
    """Write the reference pages from the code."""
    if check and (wrong := [*faults(), *log_faults()]):
        raise click.ClickException("\n".join(wrong))
    stale = [name for name, page in PAGES.items() if _is_stale(REFERENCE / name, page(), write=not check)]
    if check and stale:
        raise click.ClickException(f"not up to date: {', '.join(stale)}. Run `python docs/generate.py`.")


def _is_stale(path: Path, text: str, *, write: bool) -> bool:
    if path.exists() and path.read_text("utf-8") == text:
        return False
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        click.echo(f"wrote {path.name}")
    return True


if __name__ == "__main__":
    generate()
