"""Asking Pub/Sub whether topics can be published to, and creating those that are missing."""

from google.api_core.exceptions import (
    AlreadyExists,
    GoogleAPICallError,
    InvalidArgument,
    MethodNotImplemented,
    NotFound,
    PermissionDenied,
)
from google.auth.exceptions import GoogleAuthError

from distributary.derive.topics import is_topic
from distributary.errors import EnvironmentFault
from distributary.pubsub.client import open_client
from distributary.pubsub.limits import path_of
from distributary.pubsub.standing import PUBLISH, Standing, Topic

_ANSWER_SECONDS = 10.0


class Topics:
    """The topics of a project; raises `EnvironmentFault` when there are no credentials."""

    def __init__(self, project: str, endpoint: str = "", answer_seconds: float = _ANSWER_SECONDS) -> None:
        self._project = project
        self._seconds = answer_seconds
        self._client = open_client(endpoint)

    def look(self, topic: str) -> Topic:
        """Ask how a topic stands; who may publish and nothing else is told, too."""
        path = path_of(self._project, topic)
        if not is_topic(topic):
            return Topic(path, Standing.IMPOSSIBLE)
        try:
            return self._asked(path)
        except NotFound as error:
            return Topic(path, Standing.MISSING, error.message)
        except InvalidArgument as error:
            return Topic(path, Standing.IMPOSSIBLE, error.message)
        except (GoogleAPICallError, GoogleAuthError) as error:
            return Topic(path, Standing.UNREACHABLE, f"{error}")

    def create(self, topic: str) -> None:
        """Create a topic; one that is there stays. Raises `EnvironmentFault` when that is not possible."""
        path = path_of(self._project, topic)
        try:
            self._client.create_topic(name=path, retry=None, timeout=self._seconds)
        except AlreadyExists:
            return
        except (GoogleAPICallError, GoogleAuthError) as error:
            cure = f"Let somebody create it who may: `gcloud pubsub topics create {path}`."
            raise EnvironmentFault(f"{path} cannot be created: {error}.", cure) from error

    def close(self) -> None:
        """Close the connection."""
        self._client.stop()
        self._client.transport.close()

    def _asked(self, path: str) -> Topic:
        """Ask for the permission; of a topic that does not exist it is not granted, and nothing else is said."""
        exists = self._exists(path)
        asked = {"resource": path, "permissions": [PUBLISH]}
        try:
            answer = self._client.test_iam_permissions(request=asked, timeout=self._seconds)
        except MethodNotImplemented:
            return Topic(path, Standing.UNTOLD)
        except PermissionDenied as error:
            return Topic(path, Standing.FORBIDDEN, error.message)
        if PUBLISH in answer.permissions:
            return Topic(path, Standing.READY)
        return Topic(path, Standing.FORBIDDEN, "" if exists else "or it does not exist")

    def _exists(self, path: str) -> bool:
        """Tell whether a topic is known to exist; raises `NotFound` when it does not."""
        try:
            self._client.get_topic(topic=path, retry=None, timeout=self._seconds)
        except PermissionDenied:
            return False
        return True
