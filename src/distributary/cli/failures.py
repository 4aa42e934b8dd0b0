"""What a failure looks like on stderr, and its exit code."""

import re
import traceback

import click
from pymongo.errors import ConfigurationError as DriverConfigurationError
from pymongo.errors import ConnectionFailure, InvalidURI, OperationFailure

from distributary.errors import ConfigurationError, DistributaryError, EnvironmentFault, Fault
from distributary.log import without_credentials

# Error codes of the server: https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml;
# 8000 is the one for bad credentials on Atlas.
_UNAUTHORIZED = 13
_BAD_CREDENTIALS = frozenset({18, 8000})
_NOT_A_REPLICA_SET = 40573


def tell(error: Exception) -> int:
    """Tell of a failure on stderr, what went wrong and what to do, and give the exit code."""
    known = error if isinstance(error, DistributaryError) else of_driver(error)
    if known is None:
        _echo(f"error: unexpected {type(error).__name__}: {error}")
        _echo("".join(traceback.format_exception(error)).rstrip())
        _echo("  cure: this is a fault in distributary; report it with the lines above.")
        return 1
    for message, cure in _parts(known):
        _echo(f"error: {message}")
        if cure:
            _echo(f"  cure: {cure}")
    return known.exit_code


def _parts(error: DistributaryError) -> list[tuple[str, str]]:
    if isinstance(error, ConfigurationError):
        return [(f"{fault.place}: {fault.problem}", fault.cure) for fault in error.faults]
    return [(error.message, error.cure)]


def _echo(line: str) -> None:
    click.echo(without_credentials(line), err=True)


def of_driver(error: Exception) -> DistributaryError | None:
    """Give what an error of the driver means to an operator, or None when that is not known."""
    if isinstance(error, DriverConfigurationError):
        return ConfigurationError([_bad_uri(error)])
    if isinstance(error, ConnectionFailure):
        return _unreachable(error)
    if isinstance(error, OperationFailure):
        return _refused(error)
    return None


def _bad_uri(error: DriverConfigurationError) -> Fault:
    """Tell of a URI; what the driver says of a malformed one may quote the password."""
    problem = "is not a MongoDB connection string." if isinstance(error, InvalidURI) else f"{error}"
    return Fault(
        "source.uri or derived.uri", problem, "Correct the host, the options or the credentials in it."
    )


def _unreachable(error: ConnectionFailure) -> EnvironmentFault:
    reason = re.sub(r" \(configured timeouts:[^)]*\)", "", str(error)).partition(", Timeout:")[0]
    return EnvironmentFault(
        f"MongoDB cannot be reached: {reason}.",
        "Look whether it runs, and whether host, port, replicaSet and tls in source.uri and derived.uri"
        " are right.",
    )


def _refused(error: OperationFailure) -> EnvironmentFault | None:
    if error.code in _BAD_CREDENTIALS:
        return EnvironmentFault(
            "MongoDB refused the user or the password.",
            "Correct user, password and authSource in source.uri and derived.uri.",
        )
    if error.code == _UNAUTHORIZED:
        return EnvironmentFault(
            f"A privilege is missing: {_without_command(error)}.",
            "Grant it to the user in source.uri or derived.uri; `distributary check` lists what is needed.",
        )
    if error.code == _NOT_A_REPLICA_SET:
        return EnvironmentFault(
            "The source is not a replica set, so it has no change stream.",
            "Start mongod with --replSet and run rs.initiate(), or name a replica set in source.uri.",
        )
    return None


def _without_command(error: OperationFailure) -> str:
    """Give the server's message with the name of the command that was refused, without its data."""
    message = str((error.details or {}).get("errmsg", error))
    return re.sub(r"execute command \{ (\w+):.*", r"execute command \1", message, flags=re.DOTALL)
