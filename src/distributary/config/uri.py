"""MongoDB connection strings: checked offline, shown without secrets, compared by their hosts."""

import re
from typing import Any

from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

_HOST = r"(?:[\w.%-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
_URI = re.compile(
    rf"(?P<scheme>mongodb(?:\+srv)?://)(?:.*@)?(?P<hosts>{_HOST}(?:,{_HOST})*)"
    r"(?P<path>/[\w-]*)?(?:\?(?P<options>.*))?",
    re.DOTALL,
)

#: The options of a URI that tell where it leads and hold no secret, in lower case.
_SHOWN_OPTIONS = frozenset({"authsource", "directconnection", "readpreference", "replicaset", "ssl", "tls"})


def redact(uri: str | SecretStr) -> str:
    """Give a connection string for display: without credentials, and only with options that are no secret.

    What does not look like a connection string is not shown at all: nobody knows where its secret is.
    """
    match = _URI.fullmatch(_plain(uri))
    if match is None:
        return "(malformed URI)"
    options = [option for option in (match["options"] or "").split("&") if _is_shown(option)]
    path = match["path"] or ("/" if options else "")
    return f"{match['scheme']}{match['hosts']}{path}{'?' if options else ''}{'&'.join(options)}"


def _is_shown(option: str) -> bool:
    return option.partition("=")[0].lower() in _SHOWN_OPTIONS


def _plain(uri: str | SecretStr) -> str:
    return uri.get_secret_value() if isinstance(uri, SecretStr) else uri


def hosts(uri: str) -> set[str]:
    """Give the `host:port` pairs that a connection string names, in lower case; none when it is malformed."""
    match = _URI.fullmatch(uri)
    return {_with_port(host) for host in match["hosts"].lower().split(",")} if match else set()


def _with_port(host: str) -> str:
    return host if re.search(r":\d+$", host) else f"{host}:27017"


def fault_of(uri: str) -> tuple[str, str] | None:
    """Give problem and cure of what the driver would refuse, or None; neither shows a secret.

    No name server is asked: what stands behind a `mongodb+srv` name is not checked here.
    """
    try:
        parse_uri(_without_srv(uri))
    except (PyMongoError, ValueError, OSError):
        return _explained(uri)
    return _explained(uri) if _is_bad_srv(uri) else _refused(uri)


def _refused(uri: str) -> tuple[str, str] | None:
    """Tell what each option allows and all together do not, such as a key without a certificate."""
    try:
        MongoClient[Any](_without_srv(uri), connect=False).close()
    except (PyMongoError, ValueError, OSError) as error:
        return f"is refused: {error}.", "Correct what authenticates the user, and the files that it names."
    return None


def _is_bad_srv(uri: str) -> bool:
    """Tell whether a `mongodb+srv` URI has what only others may: several hosts, or a port."""
    match = _URI.fullmatch(uri)
    return uri.startswith("mongodb+srv://") and (match is None or not {",", ":"}.isdisjoint(match["hosts"]))


def _without_srv(uri: str) -> str:
    """Give the URI that the driver can parse without asking a name server."""
    if not uri.startswith("mongodb+srv://"):
        return uri
    address, mark, options = uri.removeprefix("mongodb+srv://").partition("?")
    kept = [option for option in options.split("&") if not option.lower().startswith("srv")]
    return f"mongodb://{address}{mark}{'&'.join(kept)}"


def _explained(uri: str) -> tuple[str, str]:
    if not uri.startswith(("mongodb://", "mongodb+srv://")):
        return "does not start with mongodb:// or mongodb+srv://.", "Give the whole connection string."
    bad = _bad_options(uri)
    if bad:
        cure = "See 'Connection String Options' in MongoDB's manual; a file that an option names must exist."
        return f"has a bad option {', '.join(bad)}.", cure
    cure = (
        "Write mongodb://user:password@host:port/?replicaSet=name; characters of the user and the password"
        " other than letters and digits are percent-encoded."
    )
    return "is not a MongoDB connection string.", cure


def _bad_options(uri: str) -> list[str]:
    """Name the options that the driver refuses; none when an '@' makes it unclear what is an option."""
    options = _without_srv(uri).partition("?")[2]
    if "@" in options:
        return []
    names = [option.partition("=") for option in options.split("&") if option]
    return [repr(name) for name, _, value in names if not _driver_takes(name, value)]


def _driver_takes(name: str, value: str) -> bool:
    try:
        parse_uri(f"mongodb://host/?{name}={value}")
    except (PyMongoError, ValueError, OSError):
        return False
    return True
