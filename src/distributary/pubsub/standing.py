"""How a topic stands, and what that means to an operator."""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from distributary.errors import EnvironmentFault

#: The permission to publish, and the role that has it and nothing else.
PUBLISH = "pubsub.topics.publish"
ROLE = "roles/pubsub.publisher"


class Standing(StrEnum):
    """How a topic stands; at `UNTOLD` it exists, and it is not told who may publish, as by the emulator."""

    READY = "ready"
    UNTOLD = "untold"
    MISSING = "missing"
    IMPOSSIBLE = "impossible"
    FORBIDDEN = "forbidden"
    UNREACHABLE = "unreachable"


class Topic(NamedTuple):
    """A topic by its whole name, and how it stands; `reason` is what Pub/Sub said."""

    path: str
    standing: Standing
    reason: str = ""

    @property
    def is_refused(self) -> bool:
        """Whether nothing can be published to it until somebody puts that right."""
        return self.standing in {Standing.MISSING, Standing.IMPOSSIBLE, Standing.FORBIDDEN}

    @property
    def told(self) -> str:
        """Say how it stands."""
        return f"{self.path} {_TOLD[self.standing]}{f' ({self.reason})' if self.reason else ''}."

    @property
    def cure(self) -> str:
        """Say what to do; empty when nothing is to be done."""
        return _CURES[self.standing].format(path=self.path, role=ROLE)


_TOLD = {
    Standing.READY: "can be published to",
    Standing.UNTOLD: "exists; whether it may be published to is not told",
    Standing.MISSING: "does not exist",
    Standing.IMPOSSIBLE: "cannot exist",
    Standing.FORBIDDEN: f"may not be published to: {PUBLISH} is not granted",
    Standing.UNREACHABLE: "cannot be asked for",
}

_CURES = {
    Standing.READY: "",
    Standing.UNTOLD: "",
    Standing.MISSING: "Run `gcloud pubsub topics create {path}`, or `distributary check --fix`.",
    Standing.IMPOSSIBLE: (
        "Give it a name of 3 to 255 letters, digits and -._~+%, a letter first, that does not begin with goog."
    ),
    Standing.FORBIDDEN: (
        "Look whether the name is right, and grant the role: `gcloud pubsub topics add-iam-policy-binding {path}"
        " --role={role} --member=serviceAccount:…`."
    ),
    Standing.UNREACHABLE: (
        "Look whether the credentials and pubsub.endpoint are right, and the endpoint can be reached. A worker starts"
        " all the same; what it is to publish waits."
    ),
}


def refuse(topics: Iterable[Topic]) -> None:
    """Raise `EnvironmentFault` with all those of the topics that nothing can be published to, if there are any."""
    refused = [each for each in topics if each.is_refused]
    if refused:
        told = " ".join(each.told for each in refused)
        raise EnvironmentFault(told, " ".join(dict.fromkeys(each.cure for each in refused)))
