"""Personal data in derived records: pseudonyms with a key, masks, and the spelling that is compared."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from distributary.config import Config
from distributary.config import load as configured
from distributary.derive.registry import Registry
from distributary.errors import ConfigurationError
from distributary.personal import (
    KeyMissing,
    Value,
    key_digest,
    mask_email,
    mask_phone,
    plain_email,
    plain_phone,
    pseudonym,
)
from distributary.plugins import load
from distributary.testing import NotDerived, derive, personal_key
from distributary.testing import load as load_one

KEY = "0123456789abcdef"
LEAST = {"DISTRIBUTARY_SOURCE__URI": "mongodb://h/", "DISTRIBUTARY_SOURCE__DATABASE": "raw"}
VARIABLE = "DISTRIBUTARY_PERSONAL_DATA__KEY"

MODULE = """
    from distributary import DerivedCollection, transform
    from distributary.personal import mask_email, pseudonym

    people = DerivedCollection("people")
    masks = DerivedCollection("masks")

    @transform("people")
    def people_by_address(person):
        yield people.record(person["_id"], {"who": hidden(person)})

    def hidden(person):
        return pseudonym(person.get("email"))

    @transform("people")
    def masked_people(person):
        yield masks.record(person["_id"], {"who": mask_email(person.get("email"))})
"""


@pytest.fixture
def plugged(tmp_path: Path) -> Callable[..., Registry]:
    """Give what loads a module into a registry."""
    made: list[Path] = []

    def loaded(code: str = MODULE) -> Registry:
        made.append(tmp_path / f"m{len(made)}")
        made[-1].mkdir()
        (made[-1] / "people.py").write_text(dedent(code), encoding="utf-8")
        return load([made[-1]], entry_points=False)

    return loaded


# --- the functions ------------------------------------------------------------------------------------------


def test_a_pseudonym_is_the_hmac_of_the_standard() -> None:
    """HMAC-SHA-256 as RFC 4231 has it (test case 2), so that a partner's own code comes to the same."""
    with personal_key("Jefe"):
        assert pseudonym("what do ya want for nothing?") == (
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        )


@personal_key(KEY)
def test_spellings_of_one_value_have_one_pseudonym_and_values_have_their_own() -> None:
    """Case, white space and compatible characters do not count; another key gives other ones."""
    ada = pseudonym("ada@example.com")
    assert ada == pseudonym(" Ada@Example.COM\n") == pseudonym("\uff41da@example.com")
    assert pseudonym(4711) == pseudonym("4711")
    assert len({ada, pseudonym("bob@example.com"), pseudonym("+12025550147")}) == 3
    with personal_key(KEY + "x"):
        assert pseudonym("ada@example.com") != ada


@pytest.mark.parametrize("hide", [pseudonym, plain_email, plain_phone, mask_email, mask_phone])
@pytest.mark.parametrize("value", [None, "", "  "])
def test_nothing_stays_nothing(hide: Callable[[Value], str | None], value: str | None) -> None:
    """What is not there has no pseudonym that all who lack it would share; no key is needed to say so."""
    assert hide(value) is None


@pytest.mark.parametrize("value", [1.5, True, b"ada", ["ada"]])
@personal_key(KEY)
def test_what_is_no_text_is_refused_without_being_shown(value: object) -> None:
    """A document with such a value is parked, rather than its representation hashed."""
    with pytest.raises(TypeError, match=f"type {type(value).__name__} is no address"):
        pseudonym(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ("+1-202-555-0147", "+12025550147"),
        ("001 (202) 555.0147", "+12025550147"),
        ("+44 (0)20 7946 0018", "+442079460018"),
        ("202/555-0147", "2025550147"),
        (2025550147, "2025550147"),
        (" 555-0147 EXT 3", "555-0147 ext 3"),
        ("+", "+"),
    ],
)
def test_phone_numbers_are_compared_by_their_digits(value: str | int, plain: str) -> None:
    """However they are written; no country is guessed, and what is no number is left."""
    assert plain_phone(value) == plain
    assert plain_phone(plain) == plain


@pytest.mark.parametrize(
    ("mask", "value", "shown"),
    [
        (mask_email, " Ada@Example.com", "a***@example.com"),
        (mask_email, '"a@b"@example.com', '"***@example.com'),
        (mask_email, "@example.com", "***@example.com"),
        (mask_email, "ada", "***"),
        (mask_email, "ada@", "a***@"),
        (mask_phone, "+1 202 555 01 47", "***47"),
    ],
)
def test_masks_show_little(mask: Callable[[Value], str | None], value: str, shown: str) -> None:
    """Enough for whom it belongs to."""
    assert mask(value) == shown


# --- the key ------------------------------------------------------------------------------------------------


@personal_key(None)
def test_without_a_key_a_pseudonym_fails_and_says_what_to_do() -> None:
    """The reason names the configuration's key, and no part of the value."""
    with pytest.raises(KeyMissing, match=rf"\[personal_data\].*{VARIABLE}") as failure:
        pseudonym("ada@example.com")
    assert "ada" not in str(failure.value)
    assert key_digest() is None


def test_a_transform_without_a_key_would_park_its_document(tmp_path: Path) -> None:
    """In a test as in a worker; `personal_key` gives it one."""
    (tmp_path / "people.py").write_text(dedent(MODULE), encoding="utf-8")
    function = load_one(tmp_path / "people.py").people_by_address
    ada = {"_id": 1, "email": "ada@example.com"}
    with personal_key(None), pytest.raises(NotDerived, match=VARIABLE):
        derive(function, ada)
    with personal_key(KEY):
        assert derive(function, ada)["people"][1] == {"who": pseudonym("ada@example.com")}


def test_code_that_names_pseudonym_is_refused_without_a_key(plugged: Callable[..., Registry]) -> None:
    """With its place, and before any document is parked; code that only masks needs none."""
    registry = plugged()
    with pytest.raises(ConfigurationError) as failure:
        registry.under_key(None)
    (fault,) = failure.value.faults
    assert fault.place.endswith("people.py:9")
    assert "'people_by_address' names pseudonym" in fault.problem
    assert VARIABLE in fault.cure
    assert registry.only(["masked_people"]).under_key(None).transforms


def test_another_key_is_another_fingerprint_where_pseudonyms_are_made(
    plugged: Callable[..., Registry],
) -> None:
    """So that a worker notices that what is stored is outdated; other transforms keep theirs."""
    registry = plugged()
    keyed = [registry.under_key(digest) for digest in ("a", "b", "a")]
    prints = [{name: each.fingerprint for name, each in one.transforms.items()} for one in keyed]
    assert prints[0] == prints[2]
    assert prints[0]["people_by_address"] != prints[1]["people_by_address"]
    assert prints[0]["masked_people"] == prints[1]["masked_people"]
    for one in keyed:
        assert {each.name: each for each in one.by_source["people"]} == one.transforms
        assert (one.collections, one.declared) == (registry.collections, registry.declared)


TWO_LINES = "from distributary.personal import mask_email, pseudonym"


@pytest.mark.parametrize(
    ("imported", "called"),
    [
        ("from distributary.personal import *", "pseudonym"),
        ("from distributary import personal", "personal.pseudonym"),
        ("import distributary.personal", "distributary.personal.pseudonym"),
        ("import distributary.personal as p", "p.pseudonym"),
        ("from distributary.personal import pseudonym as hide\nWAYS = {1: hide}", "WAYS[1]"),
    ],
)
def test_pseudonym_is_found_however_it_was_imported(
    plugged: Callable[..., Registry], imported: str, called: str
) -> None:
    """At the top of the module, or of one that it imports."""
    code = dedent(MODULE).replace(TWO_LINES, f"from distributary.personal import mask_email\n{imported}")
    registry = plugged(code.replace("return pseudonym(", f"return {called}("))
    assert registry.transforms["people_by_address"].pseudonyms is True
    assert registry.transforms["masked_people"].pseudonyms is False


@pytest.mark.parametrize(
    ("inside", "called"),
    [
        ("from distributary.personal import pseudonym as hide", "hide"),
        ("from distributary import personal", "personal.pseudonym"),
        ("import distributary.personal", "distributary.personal.pseudonym"),
    ],
)
def test_pseudonym_is_found_where_a_function_imports_it(
    plugged: Callable[..., Registry], inside: str, called: str
) -> None:
    """An import inside a function counts as one at the top."""
    code = dedent(MODULE).replace(", pseudonym", "")
    registry = plugged(code.replace("return pseudonym(", f"{inside}\n    return {called}("))
    assert registry.transforms["people_by_address"].pseudonyms is True
    assert registry.transforms["masked_people"].pseudonyms is False


# --- the configuration --------------------------------------------------------------------------------------


def the_key(config: Config) -> str:
    """Give the key of a configuration."""
    assert config.personal_data
    return config.personal_data.key.get_secret_value()


def test_the_key_is_a_secret_of_the_configuration(tmp_path: Path) -> None:
    """From the file, a variable or a file of its own; it is never shown."""
    (tmp_path / "key").write_text(f"{KEY}\n", encoding="utf-8")
    (tmp_path / "c.toml").write_text(f'[personal_data]\nkey = "{KEY}"\n', encoding="utf-8")
    found = [
        configured(tmp_path / "c.toml", LEAST),
        configured(None, LEAST | {VARIABLE: f" {KEY} "}),
        configured(None, LEAST | {f"{VARIABLE}_FILE": str(tmp_path / "key")}),
    ]
    assert [the_key(config) for config in found] == [KEY] * 3
    assert not [config for config in found if KEY in f"{config!r} {config}"]
    assert configured(None, LEAST).personal_data is None


@pytest.mark.parametrize("key", ["", "   ", "hunter2", "x" * 15 + " "])
def test_a_key_that_could_be_guessed_is_refused(key: str) -> None:
    """With what makes a better one, and without showing it."""
    with pytest.raises(ConfigurationError, match="openssl rand") as failure:
        configured(None, LEAST | {VARIABLE: key})
    assert not key.strip() or key.strip() not in str(failure.value)


def test_the_section_without_its_key_is_told(tmp_path: Path) -> None:
    """A forgotten key is a fault rather than the absence of pseudonyms."""
    (tmp_path / "c.toml").write_text("[personal_data]\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=f"personal_data.key: is missing.*{VARIABLE}_FILE"):
        configured(tmp_path / "c.toml", LEAST)
