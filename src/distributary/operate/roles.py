"""The roles that the users of a configuration need, as the commands that create them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from textwrap import indent
from typing import Any, NamedTuple

from distributary.config import Config
from distributary.operate.privileges import FIXES, NEEDS, Need, Place, Role

#: Where what does not lie in a database of the configuration is.
SERVERS: Mapping[Role, Place] = {Role.CLUSTER: Place(""), Role.OPLOG: Place("local", "oplog.rs")}

#: What the user in each connection string is about.
SIDES = {
    "source.uri": (Role.SOURCE, Role.CLUSTER, Role.OPLOG),
    "derived.uri": (Role.DERIVED, Role.STATE),
}

_HEAD = """\
// For mongosh, as a user who may manage roles (the built-in role userAdmin on admin). It may be run again.
"""

_SCRIPT = """
// {on}
{{
  const admin = db.getSiblingDB("admin"), name = {name}, role = {{
    privileges: [
{privileges}
    ],
    roles: [],
  }};
  if (admin.getRole(name)) admin.updateRole(name, role);
  else admin.createRole({{role: name, ...role}});
}}
"""


class LeastRole(NamedTuple):
    """A role in `admin` with what the user in a connection string needs, and no more; `on` names its keys."""

    on: str
    name: str
    privileges: list[dict[str, Any]]

    @property
    def command(self) -> dict[str, Any]:
        """The command that creates it, for the database `admin`."""
        return {"createRole": self.name, "privileges": self.privileges, "roles": []}


def roles(config: Config, *, fix: bool = False) -> list[LeastRole]:
    """Give the role of each user: one where source and derived deployment have the same connection string.

    With `fix`, they allow what `check --fix` does, too.
    """
    places = places_of(config.source.database, config.derived.database, config.state.database)
    name = f"{config.state.database}_{config.worker.name}"
    if config.source.uri == config.derived.uri:
        return [LeastRole("source.uri", name, privileges(places, fix=fix))]
    return [
        LeastRole(
            key,
            f"{name}_{key.partition('.')[0]}",
            privileges({role: places[role] for role in about}, fix=fix),
        )
        for key, about in SIDES.items()
    ]


def places_of(source: str, derived: str, state: str) -> dict[Role, Place]:
    """Give where each need is, for databases of these names."""
    return {
        Role.SOURCE: Place(source),
        **SERVERS,
        Role.DERIVED: Place(derived),
        Role.STATE: Place(state),
    }


def privileges(places: Mapping[Role, Place], *, fix: bool = False) -> list[dict[str, Any]]:
    """Give what is needed on these places, as `createRole` takes it; optional needs are met."""
    return [
        {"resource": place.resource, "actions": list(dict.fromkeys(_actions(role, fix=fix)))}
        for role, place in places.items()
    ]


def _actions(role: Role, *, fix: bool) -> Iterator[str]:
    needs: Iterable[Need] = [*NEEDS, *FIXES] if fix else NEEDS
    return (action for need in needs if need.role is role for action in need.actions)


def script(least: Iterable[LeastRole]) -> str:
    """Give a script for mongosh that creates the roles, and gives those that are there these privileges."""
    return "".join([_HEAD, *map(_part, least)])


def _part(role: LeastRole) -> str:
    lines = "".join(f"{json.dumps(each)},\n" for each in role.privileges).rstrip()
    return _SCRIPT.format(
        on=f"for the user in {role.on}", name=json.dumps(role.name), privileges=indent(lines, " " * 6)
    )
