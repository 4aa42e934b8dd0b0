"""What a failure looks like on stderr, and its exit code."""

import re

import click
from pymongo.errors import ConfigurationError as DriverConfigurationError
from pymongo.errors import ConnectionFailure, InvalidURI, OperationFailure, ServerSelectionTimeoutError

from distributary.engine.retry import lacks_sessions
from distributary.errors import ConfigurationError, DistributaryError, EnvironmentFault, Fault
from distributary.log import shown, without_credentials
from distributary.quoting import of_error

# Error codes of the server: https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml;
# 8000 is the one for bad credentials on Atlas.
_UNAUTHORIZED = 13
_BAD_CREDENTIALS = frozenset({18, 8000})
_NOT_A_REPLICA_SET = 40573

#: What to do about UserNotFound and MechanismUnavailable.
_UNKNOWN = {
    11: "Create the user; that of a certificate has its subject as name, exactly so, in the database $external.",
    334: "Correct authMechanism in source.uri and derived.uri, or switch this one on in the server.",
}

_LOOK = "Look whether it runs, and whether host, port, replicaSet and tls in source.uri and derived.uri are right."

_NO_AWS = "Give this process an IAM role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in its environment."

#: What the driver says of connections that TLS ended, and what to do; the first that fits.
_TLS = {
    "CERTIFICATE_VERIFY_FAILED.*(?:Hostname|IP address) mismatch": (
        "Name the server in source.uri and derived.uri as its certificate does, or have one issued for this name."
    ),
    "CERTIFICATE_VERIFY_FAILED.*expired": "Renew the certificate of the server.",
    "CERTIFICATE_VERIFY_FAILED": (
        "Name the file of the authority that signed the server's certificate: tlsCAFile in source.uri and derived.uri."
    ),
    "connection closed|reset by peer|ALERT": (
        f"{_LOOK} A server that wants TLS closes connections without it (tls=true), and one that wants certificates"
        " of its clients those without a valid one (tlsCertificateKeyFile)."
    ),
    "SSL": "Look whether the server has TLS; if not, take tls out of source.uri and derived.uri.",
}

#: What to install for ways to authenticate that the driver leaves to other packages.
_EXTRAS = {"MONGODB-AWS": "aws", "GSSAPI": "gssapi", "kerberos": "gssapi"}


def tell(error: BaseException) -> int:
    """Tell of a failure on stderr, what went wrong and what to do, and give the exit code."""
    known = error if isinstance(error, DistributaryError) else of_driver(error)
    if known is None:
        what, trace = of_error(error, error.__traceback__)
        _echo(f"error: unexpected {shown(what)}")
        _echo(shown(trace).rstrip())
        _echo("  cure: this is a fault in distributary; report it with the lines above.")
        return 1
    for message, cure in _parts(known):
        _echo(f"error: {shown(message)}")
        if cure:
            _echo(f"  cure: {cure}")
    return known.exit_code


def _parts(error: DistributaryError) -> list[tuple[str, str]]:
    if isinstance(error, ConfigurationError):
        return [(f"{fault.place}: {fault.problem}", fault.cure) for fault in error.faults]
    return [(error.message, error.cure)]


def _echo(line: str) -> None:
    click.echo(without_credentials(line), err=True)


def of_driver(error: BaseException) -> DistributaryError | None:
    """Give what an error of the driver means to an operator, or None when that is not known."""
    if lacks_sessions(error):
        return EnvironmentFault("A member of the replica set was changing its role.", "Run it again.")
    if isinstance(error, DriverConfigurationError):
        return ConfigurationError([_bad_uri(error)])
    if isinstance(error, ConnectionFailure):
        return _unreachable(error)
    if isinstance(error, OperationFailure):
        return _refused(error)
    if isinstance(error, OSError) and error.filename:
        return _unreadable(error)
    return None


def _bad_uri(error: DriverConfigurationError) -> Fault:
    """Tell of a URI; what the driver says of a malformed one may quote the password."""
    place = "source.uri or derived.uri"
    if extra := next((extra for word, extra in _EXTRAS.items() if word in str(error)), None):
        return Fault(place, f"{error}", f"Install it beside distributary: pip install 'pymongo[{extra}]'.")
    problem = "is not a MongoDB connection string." if isinstance(error, InvalidURI) else f"{error}"
    return Fault(place, problem, "Correct the host, the options or the credentials in it.")


def _unreadable(error: OSError) -> EnvironmentFault:
    """Tell of a file that is needed to connect, such as one with a token."""
    return EnvironmentFault(
        f"{error.filename}: {error.strerror}.", "Let this process read the file, or correct what names it."
    )


def _unreachable(error: ConnectionFailure) -> EnvironmentFault:
    reason = re.sub(r" \(configured timeouts:[^)]*\)", "", str(error)).partition(", Timeout:")[0]
    cures = _TLS.items() if isinstance(error, ServerSelectionTimeoutError) else ()
    cure = next((cure for pattern, cure in cures if re.search(pattern, reason)), _LOOK)
    return EnvironmentFault(f"MongoDB cannot be reached: {reason}.", cure)


def _refused(error: OperationFailure) -> EnvironmentFault | None:
    if error.code in _BAD_CREDENTIALS:
        return EnvironmentFault(
            "MongoDB refused the user or the password.",
            "Correct user, password and authSource in source.uri and derived.uri.",
        )
    if error.code is None and "MONGODB-AWS" in str(error):
        return EnvironmentFault(f"{error}.", _NO_AWS)
    if error.code in _UNKNOWN:
        return EnvironmentFault(f"MongoDB refused to authenticate: {_said(error)}.", _UNKNOWN[error.code])
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
    return re.sub(r"execute command \{ (\w+):.*", r"execute command \1", _said(error), flags=re.DOTALL)


def _said(error: OperationFailure) -> str:
    return str((error.details or {}).get("errmsg", error))
