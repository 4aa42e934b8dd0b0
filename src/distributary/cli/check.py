"""`distributary check`: the preflight."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from pymongo.errors import PyMongoError
from rich.text import Text

from distributary.assemble import connect, registry, topics
from distributary.cli.common import config_option, console, emit_json, json_option, open_config
from distributary.cli.failures import of_driver
from distributary.config import Config, PubSub, redact
from distributary.counting import counted
from distributary.derive.registry import Registry
from distributary.errors import ConfigurationError, EnvironmentFault
from distributary.log import without_credentials
from distributary.operate.check import Finding, Level, Preflight, exit_code, faults, ok
from distributary.operate.roles import LeastRole, roles, script
from distributary.operate.topics import SUBJECT, findings, published, unpublished

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "red"}


@click.command("check")
@config_option
@json_option
@click.option(
    "--fix", is_flag=True, help="Switch on the images that triggers want, and create missing topics."
)
@click.option(
    "--roles",
    "only_roles",
    is_flag=True,
    help="Print a script for mongosh that creates the roles that the users need, and look at nothing.",
)
def command(config_path: Path | None, *, fix: bool, only_roles: bool, as_json: bool) -> int:
    """Look whether everything that a worker needs is there; nothing is written without --fix.

    With --fix, source collections whose triggers want the document before or behind a change keep it from now on
    (changeStreamPreAndPostImages), and missing Pub/Sub topics are created; what was done is told.

    Shows every finding with its cure. Exit code 2 when configuration or transform modules are wrong, else 3
    when the environment is; warnings leave it at 0.

    With --roles, MongoDB is not asked: the roles are those of this configuration, with --fix also for that.
    """
    if only_roles:
        _print_roles(roles(open_config(config_path), fix=fix), as_json=as_json)
        return 0
    findings = []
    for finding in _found(config_path, fix=fix):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        emit_json({"fine": not exit_code(findings), "findings": [each.answer() for each in findings]})
    else:
        click.echo(_summary(findings))
    return exit_code(findings)


def _print_roles(least: Sequence[LeastRole], *, as_json: bool) -> None:
    if as_json:
        emit_json({"roles": [{"on": each.on, "command": each.command} for each in least]})
    else:
        click.echo(script(least), nl=False)


def _found(config_path: Path | None, *, fix: bool) -> Iterator[Finding]:
    """Check the configuration, the modules, and as far as these allow the deployments."""
    try:
        config = open_config(config_path)
    except ConfigurationError as error:
        yield from faults("configuration", error)
        return
    yield ok("configuration", f"worker {config.worker.name}, source {redact(config.source.uri)}.")
    plugged: Registry | None = None
    try:
        plugged = registry(config)
    except ConfigurationError as error:
        yield from faults("transforms", error)
    yield from _deployments(config, plugged, fix=fix)
    wanted = published(plugged) if plugged is not None else {}
    if config.pubsub is not None:
        yield from _topics(config.pubsub, wanted, fix=fix)
    elif wanted:
        yield unpublished(wanted)


def _deployments(config: Config, plugged: Registry | None, *, fix: bool) -> Iterator[Finding]:
    try:
        with connect(config) as databases:
            yield from Preflight(
                raw=databases.raw,
                derived=databases.derived,
                state=databases.state,
                worker=config.worker.name,
                registry=plugged,
                max_records=config.worker.max_records,
                explain=of_driver,
                sleep=time.sleep,
                fix=fix,
            ).run()
    except PyMongoError as error:  # a connection string that only a name server can refuse
        yield from faults("source", of_driver(error) or EnvironmentFault(f"{error}"))


def _topics(pubsub: PubSub, wanted: Mapping[str, Sequence[str]], *, fix: bool) -> Iterator[Finding]:
    try:
        with topics(pubsub) as asked:
            yield from findings(asked, wanted, fix=fix)
    except EnvironmentFault as error:
        yield from faults(SUBJECT, error)


def _show(finding: Finding) -> None:
    """Show a finding as soon as it is there."""
    line = Text(f"{finding.level.value:<8} ", _STYLES[finding.level])
    line.append(without_credentials(f"{finding.subject}: {finding.message}"), "default")
    out = console()
    out.print(line, soft_wrap=True)
    if finding.cure:
        out.print(Text(without_credentials(f"{'':8} cure: {finding.cure}")), soft_wrap=True)


def _summary(findings: Sequence[Finding]) -> str:
    levels = [each.level for each in findings]
    wrong, warnings = levels.count(Level.FAULT), levels.count(Level.WARNING)
    if not wrong:
        return f"Ready to run, {counted(warnings, 'warning')}." if warnings else "Ready to run."
    return f"Not ready: {counted(wrong, 'fault')}, {counted(warnings, 'warning')}."
