"""Publishing what did not change: which jobs that takes, and what is in the way."""

from collections.abc import Iterable

from distributary.config import Config
from distributary.derive.registry import Registry
from distributary.errors import ConfigurationError, Fault
from distributary.state import Job, JobKind


def refuse_unpublished(config: Config, registry: Registry, transforms: Iterable[str]) -> None:
    """Raise `ConfigurationError` when nothing could be published of what these transforms fill."""
    if config.pubsub is None:
        raise ConfigurationError(
            [Fault("--publish", "nothing is published here.", "Set pubsub.project, or leave --publish out.")]
        )
    if not published_by(registry, transforms):
        raise ConfigurationError(
            [
                Fault(
                    "--publish",
                    "no derived collection of these transforms has a topic.",
                    'Declare one: DerivedCollection("customer", publish="customer-view").',
                )
            ]
        )


def published_by(registry: Registry, transforms: Iterable[str]) -> list[str]:
    """Give the published derived collections of some transforms, sorted."""
    named = frozenset[str]().union(*(registry.transforms[name].collections for name in transforms))
    return sorted(named & registry.published.keys())


def tellings(registry: Registry, transforms: Iterable[str]) -> list[Job]:
    """Give the jobs that publish every record of what these transforms fill."""
    return [Job(None, JobKind.PUBLISH, name, (), "asked for") for name in published_by(registry, transforms)]
