"""What lies in deploy/ names files, metrics, variables and pages that exist, and its configurations load."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from distributary.config import load
from distributary.plugins import load as load_modules
from tests.servers import prometheus_tool

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/rules.yaml"
RULES_TEST = DEPLOY / "prometheus/rules_test.yaml"
DASHBOARD = DEPLOY / "grafana/dashboards/distributary.json"
COMPOSE = DEPLOY / "compose.yaml"
EXAMPLE = DEPLOY / "kubernetes/example"
KUSTOMIZATIONS = sorted((DEPLOY / "kubernetes").rglob("kustomization.yaml"))
UNIT = DEPLOY / "systemd/distributary.service"
METRICS_PAGE = ROOT / "docs/reference/metrics.md"

#: A row of the page's table: a metric, its type, its unit, its labels.
_ROW = re.compile(r"^\| `distributary_(\w+)` \| ([^|]*) \|[^|]*\| ([^|]*) \|", re.MULTILINE)

#: What Prometheus, and the buckets of a histogram, add to the labels of a metric.
_TARGET = {"cluster", "namespace", "job", "instance", "le"}

#: What a histogram is scraped as.
_PARTS = ("_bucket", "_sum", "_count")


def _documented(page: str) -> dict[str, set[str]]:
    """Give the labels of each series name on the page of metrics."""
    found: dict[str, set[str]] = {}
    for name, kind, labels in _ROW.findall(page):
        names = [name + part for part in _PARTS] if kind == "histogram" else [name]
        found |= {each: set(re.findall(r"`(\w+)`", labels)) for each in names}
    return found


#: Each series that there is, without the prefix, with its labels.
SERIES = _documented(METRICS_PAGE.read_text("utf-8"))


class Query(NamedTuple):
    """A query, and where it stands."""

    place: str
    text: str


def _alerts() -> list[dict[str, Any]]:
    """Give the rules."""
    return [rule for group in _yaml(RULES)["groups"] for rule in group["rules"]]


def _queries() -> list[Query]:
    """Give each query of the dashboard and of the rules."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    shown = [Query(each["title"], target["expr"]) for each in panels for target in each.get("targets", [])]
    return [*shown, *(Query(rule["alert"], rule["expr"]) for rule in _alerts())]


def _yaml(path: Path) -> Any:
    """Give the one document of a file."""
    return yaml.safe_load(path.read_text("utf-8"))


def _series(text: str) -> set[str]:
    """Give the series that a query names, without the prefix."""
    return set(re.findall(r"\bdistributary_(\w+)", text))


def _grouped(text: str) -> set[str]:
    """Give the labels that a query groups or matches by."""
    lists = re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", text)
    return {label.strip() for each in lists for label in each.split(",")}


def _anchors(page: Path) -> set[str]:
    """Give the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("query", _queries(), ids=lambda query: query.place)
def test_queries_name_metrics_and_labels_that_there_are(query: Query) -> None:
    """The dashboard and the alerts look at nothing that is never scraped."""
    assert _series(query.text) <= set(SERIES)
    assert _grouped(query.text) <= _TARGET.union(*(SERIES[name] for name in _series(query.text)))


def test_each_metric_is_looked_at() -> None:
    """The dashboard and the alerts leave no metric out."""
    seen = set().union(*(_series(query.text) for query in _queries()))
    whole = {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in seen}
    assert {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in SERIES} == whole


@pytest.mark.parametrize("alert", _alerts(), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_each_alert_has_a_runbook(alert: Mapping[str, Any]) -> None:
    """Who is woken finds a section about the alert, which says what it means, where to look, and the cure."""
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    page = (ROOT / path).read_text("utf-8")
    assert anchor == alert["alert"].lower()
    _, _, behind = page.partition(f"\n## {alert['alert']}\n")
    section = behind.partition("\n## ")[0]
    assert "**Means.**" in section
    assert "**First look.**" in section
    assert "**Cure.**" in section or "| cure |" in section


def test_the_runbooks_are_about_alerts() -> None:
    """No section of the runbooks is about an alert that is gone."""
    titles = re.findall(r"^## (\w+)$", (ROOT / "docs/runbooks.md").read_text("utf-8"), re.MULTILINE)
    assert set(titles) == {rule["alert"] for rule in _alerts()}


@pytest.mark.parametrize("page", ["docs/runbooks.md", "docs/deploy.md"])
def test_links_of_the_pages_lead_somewhere(page: str) -> None:
    """Each link of the pages names a file or a heading that there is."""
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text("utf-8"))
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_the_alerts_do_as_their_tests_say() -> None:
    """Prometheus' own tool finds the rules right and their tests passed."""
    promtool = prometheus_tool("promtool")
    for arguments in (["check", "rules", str(RULES)], ["test", "rules", str(RULES_TEST)]):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test() -> None:
    """The tests for promtool name each alert."""
    tests = RULES_TEST.read_text("utf-8")
    assert [rule["alert"] for rule in _alerts() if not re.search(rf"\b{rule['alert']}\b", tests)] == []


def test_the_panels_do_not_overlap() -> None:
    """Each panel of the dashboard has an id, a title and a place of its own."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    cells = [cell for panel in panels for cell in _cells(panel["gridPos"])]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    assert all(panel["title"] for panel in panels)


def _cells(place: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Give the cells of the grid that a panel takes."""
    assert place["x"] + place["w"] <= 24
    for column in range(place["x"], place["x"] + place["w"]):
        yield from ((column, row) for row in range(place["y"], place["y"] + place["h"]))


def test_the_composition_names_files_that_there_are() -> None:
    """Each file and folder that a service mounts or is built from exists."""
    composition = _yaml(COMPOSE)
    mounted = [
        volume for service in composition["services"].values() for volume in service.get("volumes", [])
    ]
    paths = [volume.split(":")[0] for volume in mounted if volume.startswith(".")]
    assert paths
    assert [path for path in paths if not (DEPLOY / path).exists()] == []
    assert {volume.split(":")[0] for volume in mounted if not volume.startswith(".")} <= set(
        composition["volumes"]
    )
    built = composition["x-worker"]["build"]
    assert (DEPLOY / built["context"] / built["dockerfile"]).exists()


def test_the_composition_waits_for_services_that_there_are() -> None:
    """Each service that another one waits for exists, and so does what is waited for."""
    services = _yaml(COMPOSE)["services"]
    waits = [wait for service in services.values() for wait in _waits(service)]
    assert {name for name, _ in waits} <= set(services)
    for name, condition in waits:
        assert condition != "service_healthy" or "healthcheck" in services[name], name


def _waits(service: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give what a service waits for, and for what of it."""
    wanted = service.get("depends_on", {})
    if isinstance(wanted, list):
        return [(name, "service_started") for name in wanted]
    return [(name, each["condition"]) for name, each in wanted.items()]


def test_ports_of_the_composition_are_on_loopback() -> None:
    """Nothing of the composition, which has no passwords, is offered to the network."""
    ports = [port for service in _yaml(COMPOSE)["services"].values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_prometheus_finds_the_rules_of_the_composition() -> None:
    """The rules that Prometheus' configuration names are mounted there."""
    configuration = _yaml(DEPLOY / "compose/prometheus.yaml")
    mounted = [volume.split(":")[1] for volume in _yaml(COMPOSE)["services"]["prometheus"]["volumes"]]
    assert set(configuration["rule_files"]) <= set(mounted)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: str(path.parent.relative_to(DEPLOY)))
def test_kustomizations_name_files_that_there_are(path: Path) -> None:
    """Each resource and each file of a ConfigMap exists, and each manifest is one."""
    kustomization = _yaml(path)
    resources = [path.parent / each for each in kustomization["resources"]]
    generated = [
        path.parent / each for made in kustomization.get("configMapGenerator", []) for each in made["files"]
    ]
    assert [str(each) for each in (*resources, *generated) if not each.exists()] == []
    for manifest in (each for each in resources if each.is_file()):
        assert {"apiVersion", "kind", "metadata"} <= set(_yaml(manifest))


def test_the_deployment_is_given_what_it_mounts() -> None:
    """Each ConfigMap that the pods mount is made by the example, and no secret is."""
    pod = _yaml(DEPLOY / "kubernetes/base/deployment.yaml")["spec"]["template"]["spec"]
    made = {each["name"] for each in _yaml(EXAMPLE / "kustomization.yaml")["configMapGenerator"]}
    assert {each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each} == made
    assert "secretGenerator" not in _yaml(EXAMPLE / "kustomization.yaml")
    mounts = {each["name"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounts == {each["name"] for each in pod["volumes"]}


def test_policies_select_the_pods() -> None:
    """The budget, the policies and the monitors select by the label that the pods have."""
    label = _yaml(DEPLOY / "kubernetes/base/kustomization.yaml")["labels"][0]["pairs"]
    for name in ("base/disruption-budget", "base/network-policy", "components/gke/metadata-server"):
        spec = _yaml(DEPLOY / f"kubernetes/{name}.yaml")["spec"]
        assert (spec.get("selector") or spec["podSelector"])["matchLabels"] == label
    for name in ("gke/pod-monitoring", "prometheus-operator/pod-monitor"):
        assert (
            _yaml(DEPLOY / f"kubernetes/components/{name}.yaml")["spec"]["selector"]["matchLabels"] == label
        )


def test_the_image_is_built_from_files_that_there_are() -> None:
    """What the Dockerfile copies exists, and is not held back from the build."""
    copied = [
        name
        for line in re.findall(
            r"^COPY (?!--from)(.+)$", (DEPLOY / "Dockerfile").read_text("utf-8"), re.MULTILINE
        )
        for name in line.split()[:-1]
    ]
    let_in = re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8"), re.MULTILINE)
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert set(copied) == set(let_in)


def test_the_image_has_what_the_package_is_built_from() -> None:
    """All that pyproject.toml names for the wheel is copied into the build."""
    copied = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8")
    for name in ("README.md", "LICENSE", "src", "transformers", "pyproject.toml", "requirements.lock"):
        assert f"\n!{name}\n" in copied


def test_who_stops_a_worker_is_patient() -> None:
    """Each way to run the worker leaves it more time to stop than it takes by default."""
    needed = load(DEPLOY / "distributary.toml", {}).worker.shutdown_seconds
    pod = _yaml(DEPLOY / "kubernetes/base/deployment.yaml")["spec"]["template"]["spec"]
    given = [
        pod["terminationGracePeriodSeconds"],
        int(_yaml(COMPOSE)["services"]["worker"]["stop_grace_period"].removesuffix("s")),
        int(re.findall(r"^TimeoutStopSec=(\d+)s$", UNIT.read_text("utf-8"), re.MULTILINE)[0]),
    ]
    assert [seconds for seconds in given if seconds <= needed] == []


@pytest.mark.parametrize(
    "path",
    [DEPLOY / "distributary.toml", DEPLOY / "compose/distributary.toml", EXAMPLE / "distributary.toml"],
    ids=lambda path: str(path.relative_to(DEPLOY)),
)
def test_the_configurations_load(path: Path, tmp_path: Path) -> None:
    """Each configuration is right, with the connection string from the file that the deployments name."""
    secret = tmp_path / "source-uri"
    secret.write_text("mongodb://127.0.0.1:27017/?replicaSet=rs0", encoding="utf-8")
    given = {} if "\nuri =" in path.read_text("utf-8") else {_variable(): str(secret)}
    assert load(path, given).source.database == "raw"


def _variable() -> str:
    """Give the variable of the connection string's file, the same in the pods and in the unit."""
    pod = _yaml(DEPLOY / "kubernetes/base/deployment.yaml")["spec"]["template"]["spec"]
    name = str(pod["containers"][0]["env"][0]["name"])
    assert f"Environment={name}=%d/source-uri" in UNIT.read_text("utf-8")
    return name


def test_modules_of_a_config_map_are_found_once(tmp_path: Path) -> None:
    """A folder of links into a hidden one, which is how Kubernetes mounts a ConfigMap, gives each transform once."""
    hidden = tmp_path / "..2026_01_01_00_00_00.1"
    shutil.copytree(EXAMPLE / "transformers", hidden, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "..data").symlink_to(hidden.name)
    for each in hidden.iterdir():
        (tmp_path / each.name).symlink_to(Path("..data") / each.name)
    assert _names([tmp_path]) == ["orders"]


def _names(folders: Sequence[Path]) -> list[str]:
    """Give the names of the transforms in these folders."""
    return list(load_modules(folders, entry_points=False).transforms)


def test_nothing_names_an_index_or_a_home() -> None:
    """The files name no machine: no home folder, no package index."""
    texts = {
        path: path.read_text("utf-8")
        for path in DEPLOY.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert [
        str(path) for path, text in texts.items() if re.search(r"/home/|/root/|pypi|index-url", text)
    ] == []
