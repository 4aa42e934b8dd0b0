"""Connection strings whose options do not fit each other are refused before anything is connected to."""

from pathlib import Path

import pytest
import trustme

from distributary.config import load
from distributary.errors import ConfigurationError
from distributary.operate.roles import roles

BASE = {"DISTRIBUTARY_SOURCE__DATABASE": "raw"}


def refused(options: str) -> str:
    """Give the one fault of a configuration whose source has these options."""
    uri = f"mongodb://h/?tls=true&{options}"
    with pytest.raises(ConfigurationError) as told:
        load(None, BASE | {"DISTRIBUTARY_SOURCE__URI": uri})
    (fault,) = told.value.faults
    assert fault.place.startswith("source.uri")
    assert fault.cure
    return fault.problem


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(
            "authMechanism=MONGODB-X509&authSource=admin", "must be $external", id="source of a certificate's user"
        ),
        pytest.param("authMechanism=MONGODB-OIDC", "environment", id="no way to a token"),
        pytest.param(
            "authMechanism=MONGODB-OIDC&authMechanismProperties=ENVIRONMENT:gcp", "TOKEN_RESOURCE", id="no audience"
        ),
    ],
)  # fmt: skip
def test_authentication_that_cannot_be(options: str, words: str) -> None:
    """The driver's own reason is told, with the key."""
    assert words in refused(options)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """A key without its certificate, and an authority's file that holds none."""
    key, nothing = tmp_path / "key.pem", tmp_path / "nothing.pem"
    trustme.CA().issue_cert("h").private_key_pem.write_to_path(key)
    nothing.write_text("nothing", encoding="utf-8")
    assert refused(f"tlsCertificateKeyFile={key}").startswith("is refused: ")
    assert refused(f"tlsCAFile={nothing}").startswith("is refused: ")


def test_one_role_for_each_connection_string() -> None:
    """With one for both there is one role; with two, the source's cannot write, and the other reads no source."""
    (both,) = roles(load(None, BASE | {"DISTRIBUTARY_SOURCE__URI": "mongodb://h/"}))
    uris = {"DISTRIBUTARY_SOURCE__URI": "mongodb://h/", "DISTRIBUTARY_DERIVED__URI": "mongodb://i/"}
    source, derived = roles(load(None, BASE | uris))
    assert (source.on, derived.on) == ("source.uri", "derived.uri")
    assert source.privileges + derived.privileges == both.privileges
    assert not {action for each in source.privileges for action in each["actions"]} & {
        "insert",
        "update",
        "remove",
    }
    assert "raw" not in {each["resource"]["db"] for each in derived.privileges}
    assert len({both.name, source.name, derived.name}) == 3
