"""The configuration: where values come from, what is refused, and that no secret is ever shown."""

import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from distributary.config import KEYS, Config, Key, Point, load, point_of, redact
from distributary.errors import ConfigurationError, Fault

ROOT = Path(__file__).parents[2]
URI = "mongodb://127.0.0.1:27017/?replicaSet=rs0"
LEAST = {"DISTRIBUTARY_SOURCE__URI": URI, "DISTRIBUTARY_SOURCE__DATABASE": "raw"}
SECRET = "s3cret"  # a password


def written(folder: Path, text: str) -> Path:
    """Write a configuration file."""
    path = folder / "distributary.toml"
    path.write_text(text, "utf-8")
    return path


def faults(path: Path | None, environ: Mapping[str, str]) -> dict[str, Fault]:
    """Load what is wrong and give its faults by key, without the origin."""
    with pytest.raises(ConfigurationError) as caught:
        load(path, environ)
    return {fault.place.partition(" (")[0]: fault for fault in caught.value.faults}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, so that no file of the checkout is found."""
    monkeypatch.chdir(tmp_path)


def test_the_environment_is_enough() -> None:
    """Without a file, two variables make a whole configuration."""
    config = load(None, LEAST)
    assert config.source.uri.get_secret_value() == URI
    assert config.source.database == "raw"
    assert (config.worker.name, config.worker.start, config.pubsub) == ("default", "backfill", None)


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mapping the variables of the process count."""
    for name, value in LEAST.items():
        monkeypatch.setenv(name, value)
    assert load(None).source.database == "raw"


def test_derived_lies_beside_the_source_by_default() -> None:
    """`derived.uri` is the source's unless it is given."""
    other = "mongodb://elsewhere/"
    assert load(None, LEAST).derived.uri.get_secret_value() == URI
    config = load(None, {**LEAST, "DISTRIBUTARY_DERIVED__URI": other})
    assert config.derived.uri.get_secret_value() == other


def test_the_file_in_the_working_directory_is_found(tmp_path: Path) -> None:
    """`./distributary.toml` is read without being named."""
    written(tmp_path, f'[source]\nuri = "{URI}"\ndatabase = "raw"\n[worker]\nname = "nightly"\n')
    assert load(None, {}).worker.name == "nightly"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """A variable replaces the key of the file and leaves its neighbours."""
    path = written(tmp_path, "[worker]\nmax_records = 5\nbatch_changes = 7\n")
    config = load(path, {**LEAST, "DISTRIBUTARY_WORKER__MAX_RECORDS": "6"})
    assert (config.worker.max_records, config.worker.batch_changes) == (6, 7)


@pytest.mark.parametrize("text", ['["a", "b"]', "a,b", " a , b ,"])
def test_lists_in_variables(text: str) -> None:
    """A list is JSON or separated by commas."""
    assert load(None, {**LEAST, "DISTRIBUTARY_WORKER__ONLY": text}).worker.only == ("a", "b")


def test_an_empty_variable_is_an_empty_list() -> None:
    """A variable that is set to nothing empties a list."""
    assert load(None, {**LEAST, "DISTRIBUTARY_WORKER__ONLY": ""}).worker.only == ()


def test_a_list_that_is_not_json_is_a_fault() -> None:
    """Half a JSON list is refused, naming the variable."""
    fault = faults(None, {**LEAST, "DISTRIBUTARY_WORKER__ONLY": '["a"'})["worker.only"]
    assert fault.place == "worker.only (DISTRIBUTARY_WORKER__ONLY)"


@pytest.mark.parametrize(("value", "number"), [('"16MiB"', 16 * 2**20), ("1000", 1000), ('"1kB"', 1000)])
def test_sizes(tmp_path: Path, value: str, number: int) -> None:
    """A size is a number of bytes or has a unit, and comes out as an integer."""
    size = load(written(tmp_path, f"[worker]\nbatch_bytes = {value}\n"), LEAST).worker.batch_bytes
    assert size == number
    assert isinstance(size, int)


def test_a_secret_in_a_file(tmp_path: Path) -> None:
    """`_FILE` names a file whose stripped content is the value, and the path is no key."""
    secret = tmp_path / "uri"
    secret.write_text(f"{URI}\n", "utf-8")
    config = load(
        None, {"DISTRIBUTARY_SOURCE__URI_FILE": str(secret), "DISTRIBUTARY_SOURCE__DATABASE": "raw"}
    )
    assert config.source.uri.get_secret_value() == URI


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """What an editor puts in front of the file, or of a secret's, is left out."""
    secret, path = tmp_path / "uri", tmp_path / "distributary.toml"
    secret.write_text(URI, "utf-8-sig")
    path.write_text('[source]\ndatabase = "raw"\n[derived]\ndatabase = "derived"\n', "utf-8-sig")
    config = load(path, {"DISTRIBUTARY_SOURCE__URI_FILE": str(secret)})
    assert config.source.uri.get_secret_value() == URI


def test_a_wait_for_more_changes_has_an_end() -> None:
    """A linger of days would look like a worker that does nothing."""
    fault = faults(None, {**LEAST, "DISTRIBUTARY_WORKER__LINGER_MILLISECONDS": "1000000000"})
    assert "60000" in fault["worker.linger_milliseconds"].problem


def test_a_secret_file_that_is_missing_is_one_fault() -> None:
    """The fault names the variable, and the key is not called missing as well."""
    environ = {"DISTRIBUTARY_SOURCE__URI_FILE": "nowhere", "DISTRIBUTARY_SOURCE__DATABASE": "raw"}
    found = faults(None, environ)
    assert [fault.place for fault in found.values()] == ["source.uri (DISTRIBUTARY_SOURCE__URI_FILE)"]


def test_a_secret_given_twice_is_a_fault(tmp_path: Path) -> None:
    """A variable beside its `_FILE` is ambiguous."""
    (tmp_path / "uri").write_text(URI, "utf-8")
    assert (
        "Set only one" in faults(None, {**LEAST, "DISTRIBUTARY_SOURCE__URI_FILE": "uri"})["source.uri"].cure
    )


def test_all_faults_at_once(tmp_path: Path) -> None:
    """File, environment, values and checks across keys are reported together, each with place and cure."""
    path = written(
        tmp_path,
        'top = 1\nlog = 3\n[wroker]\n[worker]\nstart = "tomorrow"\nbatch_size = 3\nonly = ["a", 3]\n'
        'name = "A b"\n'
        '[derived]\ndatabase = "distributary"\n[dead_letters]\nwindow = 10\n[pubsub]\n[http]\nport = 70000\n',
    )
    environ = {"DISTRIBUTARY_WORKER__LINGER_MILLISECONDS": "soon", "DISTRIBUTARY_WORKER__STRAT": "now"}
    found = faults(path, environ)
    assert set(found) == {
        "[top]",
        "log",
        "[wroker]",
        "worker.start",
        "worker.batch_size",
        "worker.only[1]",
        "worker.name",
        "worker.linger_milliseconds",
        "DISTRIBUTARY_WORKER__STRAT",
        "state.database",
        "[dead_letters]",
        "pubsub.project",
        "http.port",
        "source.uri",
        "source.database",
    }
    assert all(fault.problem and fault.cure for fault in found.values())
    assert found["worker.start"].place == f"worker.start ({path})"
    assert found["worker.linger_milliseconds"].place.endswith("(DISTRIBUTARY_WORKER__LINGER_MILLISECONDS)")


def test_unknown_names_get_the_nearest_known_one(tmp_path: Path) -> None:
    """A key, a section and a variable that do not exist are faults that say what was meant."""
    path = written(tmp_path, "[wroker]\n[worker]\nmax_record = 3\n")
    found = faults(path, {**LEAST, "DISTRIBUTARY_WORKER__STRAT": "now", "DISTRIBUTARY_HTTP__PORT_FILE": "x"})
    assert "[worker]" in found["[wroker]"].cure
    assert "max_records" in found["worker.max_record"].cure
    assert "DISTRIBUTARY_WORKER__START" in found["DISTRIBUTARY_WORKER__STRAT"].cure
    assert "DISTRIBUTARY_HTTP__PORT_FILE" in found


def test_other_variables_are_left_alone() -> None:
    """What an orchestrator or another tool sets beside the configuration is no fault."""
    load(
        None,
        {**LEAST, "DISTRIBUTARY_HTTP_PORT": "tcp://10.0.0.1:80", "HOME": "/", "_DISTRIBUTARY_COMPLETE": ""},
    )


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    """A missing file is the fault, not the keys that it would have held."""
    found = faults(tmp_path / "nope.toml", {})
    assert list(found) == [str(tmp_path / "nope.toml")]


def test_syntax_errors_name_file_and_line(tmp_path: Path) -> None:
    """TOML that does not parse is told by file and line."""
    path = written(tmp_path, f'[source]\nuri = "{URI}"\ndatabase = raw\n')
    assert list(faults(path, {})) == [f"{path}:3"]


def test_a_file_that_is_not_text_is_a_fault(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are refused by name."""
    path = tmp_path / "distributary.toml"
    path.write_bytes(b"\xff\xfe")
    assert "UTF-8" in faults(path, {})[str(path)].problem


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("backfill", "backfill"),
        ("now", "now"),
        ("oldest", "oldest"),
        ("8265A1B2C3000000012B0229296E04", "8265A1B2C3000000012B0229296E04"),
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("-2h", timedelta(hours=2)),
        ("-1d12h", timedelta(days=1, hours=12)),
    ],
)
def test_places_to_start(text: str, point: Point) -> None:
    """Words, tokens, times and durations back are read, and are taken as `worker.start`."""
    assert point_of(text) == point
    assert load(None, {**LEAST, "DISTRIBUTARY_WORKER__START": text}).worker.start == text


def test_a_toml_time_is_a_place_to_start(tmp_path: Path) -> None:
    """TOML's own date and time needs no quotes."""
    config = load(written(tmp_path, "[worker]\nstart = 2026-01-31T12:00:00Z\n"), LEAST)
    assert point_of(config.worker.start) == datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "2h", "-2", "-2y", "82zz", "8265A", "yesterday", f"-{10**12}w"])
def test_no_places_to_start(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="is no position"):
        point_of(text)
    assert "worker.start" in faults(None, {**LEAST, "DISTRIBUTARY_WORKER__START": text})


@pytest.mark.parametrize(
    "name", ["", "a b", "a.b", "a$b", "a/b", "a\\b", 'a"b', "a\0b", "ä" * 32, "admin", "LOCAL"]
)
def test_database_names_follow_mongodb(name: str) -> None:
    """A name that MongoDB refuses, or keeps for itself, is refused here."""
    assert "source.database" in faults(None, {**LEAST, "DISTRIBUTARY_SOURCE__DATABASE": name})


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"DERIVED__DATABASE": "raw"}, "derived.database"),
        ({"DERIVED__DATABASE": "RAW"}, "derived.database"),
        ({"STATE__DATABASE": "raw"}, "state.database"),
        ({"STATE__DATABASE": "derived"}, "state.database"),
        ({"STATE__DATABASE": "derived", "DERIVED__URI": "mongodb://elsewhere/"}, "state.database"),
        ({"STATE__DATABASE": "raw", "DERIVED__URI": "mongodb://u:p@127.0.0.1/?w=1"}, "state.database"),
    ],
)
def test_databases_of_one_deployment_differ(environ: dict[str, str], place: str) -> None:
    """Source, derived and state are three databases; other credentials do not make another deployment."""
    assert list(faults(None, LEAST | {f"DISTRIBUTARY_{name}": value for name, value in environ.items()})) == [
        place
    ]


def test_databases_of_two_deployments_may_have_one_name() -> None:
    """The derived deployment may use the source's name, for derived collections or for the state."""
    elsewhere = {**LEAST, "DISTRIBUTARY_DERIVED__URI": "mongodb://elsewhere/"}
    assert load(None, {**elsewhere, "DISTRIBUTARY_DERIVED__DATABASE": "raw"}).derived.database == "raw"
    assert load(None, {**elsewhere, "DISTRIBUTARY_STATE__DATABASE": "raw"}).state.database == "raw"


def test_folders_are_relative_to_the_file(tmp_path: Path) -> None:
    """A folder is found from the file's folder; a name without a folder is a module."""
    (tmp_path / "etc" / "more").mkdir(parents=True)
    path = written(
        tmp_path / "etc", '[worker]\ntransformers = ["transformers", "../mine", "more", "acme.shop", "/x"]\n'
    )
    found = load(path.relative_to(tmp_path), LEAST).worker.transformers
    etc = tmp_path / "etc"
    assert found == (str(etc / "transformers"), str(tmp_path / "mine"), str(etc / "more"), "acme.shop", "/x")


def test_folders_are_relative_to_the_working_directory_without_a_file(tmp_path: Path) -> None:
    """The default folder lies in the working directory when there is no file."""
    assert load(None, LEAST).worker.transformers == (str(tmp_path / "transformers"),)


def test_models_are_frozen() -> None:
    """A configuration does not change after it was loaded."""
    config = load(None, LEAST)
    with pytest.raises(ValidationError):
        config.worker.name = "other"


LEAKS = [
    f"mongodb://user:{SECRET}@host/?unknownOption={SECRET}",
    f"mongodb://user:{SECRET}@",
    f"mongodb://user:{SECRET}",
    f"mongodb://user:{SECRET}@host:99999/",
    f"mongodb://user:p@{SECRET}@host/",
    f"mongodb://user:a/{SECRET}@host/",
    f"mongodb://user:a?{SECRET}=b@host/",
    f"mongodb://user:{SECRET}@host/?authMechanismProperties={SECRET}",
    f"mongodb://host/?authMechanismProperties=AWS_SESSION_TOKEN:{SECRET}&maxPoolSize={SECRET}",
    f"mongodb://host/?tlsCAFile={SECRET}",
    f"mongodb+srv://user:{SECRET}@a,b/",
    f"http://user:{SECRET}@host/",
    SECRET,
]


@pytest.mark.parametrize("uri", LEAKS)
def test_a_malformed_uri_is_not_quoted(tmp_path: Path, uri: str) -> None:
    """Whatever is wrong with a connection string, no part of its secret is in the fault or its chain."""
    path = written(tmp_path, f'[source]\nuri = "{uri}"\ndatabase = "raw"\n')
    for source, environ in ((path, {}), (None, {**LEAST, "DISTRIBUTARY_SOURCE__URI": uri})):
        with pytest.raises(ConfigurationError) as caught:
            load(source, environ)
        assert len(caught.value.faults) == 1
        assert (
            SECRET
            not in f"{caught.value} {caught.value!r} {caught.value.__cause__} {caught.value.__context__}"
        )
    assert SECRET not in redact(uri)


def test_a_secret_of_the_wrong_type_is_not_quoted(tmp_path: Path) -> None:
    """A secret in a list is refused without being shown."""
    path = written(tmp_path, f'[source]\nuri = ["{SECRET}"]\ndatabase = "raw"\n')
    assert SECRET not in str(faults(path, {}))


def test_a_loaded_secret_is_not_shown() -> None:
    """Neither str, repr nor JSON of a configuration holds the password."""
    config = load(None, {**LEAST, "DISTRIBUTARY_SOURCE__URI": f"mongodb://user:{SECRET}@host/"})
    assert SECRET not in f"{config} {config!r} {config.model_dump()} {config.model_dump_json()}"


def test_a_model_that_is_built_wrong_does_not_show_its_secret() -> None:
    """The validation error of the model itself is silent about its input."""
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"source": {"uri": SECRET, "database": 3}, "derived": f"{SECRET}"})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (
            f"mongodb://user:{SECRET}@a:1,b:2/db?replicaSet=r&tlsCertificateKeyFilePassword={SECRET}",
            "mongodb://a:1,b:2/db?replicaSet=r",
        ),
        ("mongodb+srv://u:p@cluster.example.net/?retryWrites=true", "mongodb+srv://cluster.example.net/"),
        ("mongodb://[::1]:27017/?tls=true", "mongodb://[::1]:27017/?tls=true"),
        ("no uri", "(malformed URI)"),
    ],
)
def test_redact(uri: str, shown: str) -> None:
    """A connection string is shown by where it leads, without credentials and unknown options."""
    assert redact(uri) == redact(SecretStr(uri)) == shown


def test_srv_addresses_are_checked_without_a_name_server() -> None:
    """A `mongodb+srv` URI with its own options is taken without asking anyone."""
    uri = "mongodb+srv://u:p@cluster.invalid/?srvMaxHosts=3&srvServiceName=x&retryWrites=true"
    assert load(None, {**LEAST, "DISTRIBUTARY_SOURCE__URI": uri}).source.uri.get_secret_value() == uri


def test_publishing_has_defaults_but_for_the_project() -> None:
    """A project is enough; a section without one is a fault."""
    project = {"DISTRIBUTARY_PUBSUB__PROJECT": "p"}
    told = load(None, {**LEAST, **project}).pubsub
    assert told is not None
    assert (told.project, told.endpoint, told.mode, told.json_form) == ("p", "", "structured", "relaxed")
    assert (told.too_large, told.outbox_events, told.outbox_bytes) == ("dead-letter", 1_000_000, 1024**3)
    assert told.in_flight_bytes == 32 * 1024**2
    mode = {"DISTRIBUTARY_PUBSUB__MODE": "binary"}
    assert "is missing" in faults(None, {**LEAST, **mode})["pubsub.project"].problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENDPOINT", "https://europe-west1-pubsub.googleapis.com"),
        ("ENDPOINT", "europe-west1-pubsub.googleapis.com"),
        ("MODE", "text"),
        ("JSON_FORM", "canonical"),
        ("TOO_LARGE", "drop"),
        ("OUTBOX_EVENTS", "0"),
        ("OUTBOX_BYTES", "none"),
        ("IN_FLIGHT_BYTES", "9999999"),
    ],
)
def test_what_publishing_cannot_work_with_is_a_fault(name: str, value: str) -> None:
    """An endpoint is host and port, choices are named, and one message of the largest size can be under way."""
    project = {"DISTRIBUTARY_PUBSUB__PROJECT": "p"}
    found = faults(None, {**LEAST, **project, f"DISTRIBUTARY_PUBSUB__{name}": value})
    assert set(found) == {f"pubsub.{name.lower()}"}
    assert all(each.problem and each.cure for each in found.values())


def test_an_endpoint_is_host_and_port() -> None:
    """A regional one is taken as it is."""
    regional = "europe-west1-pubsub.googleapis.com:443"
    given = {"DISTRIBUTARY_PUBSUB__PROJECT": "p", "DISTRIBUTARY_PUBSUB__ENDPOINT": regional}
    told = load(None, {**LEAST, **given}).pubsub
    assert told is not None
    assert told.endpoint == regional


def test_every_key_is_described() -> None:
    """The reference page has a meaning for each key."""
    assert [key for key in KEYS if not key.field.description] == []


def test_the_example_has_every_key_with_its_default(tmp_path: Path) -> None:
    """The example loads, names every key, and shows the defaults."""
    text = (ROOT / "deploy" / "distributary.toml").read_text("utf-8")
    every = tomllib.loads(re.sub(r"^# (?=\[?[a-z_]+(?:\]| = ))", "", text, flags=re.MULTILINE))
    named = {Key(section, name) for section, table in every.items() for name in table}
    assert named == set(KEYS)
    assert load(written(tmp_path, text), {}) == load(None, LEAST)
