"""cluster.yaml against Ray's own schema and against what the schema lets pass; all offline."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


# Arguments of EC2's RunInstances that the file uses, in comments too.
EC2_KEYS = {
    "BlockDeviceMappings",
    "IamInstanceProfile",
    "ImageId",
    "InstanceMarketOptions",
    "InstanceType",
    "KeyName",
}


@pytest.fixture(scope="module")
def written() -> dict:
    """Return cluster.yaml as it stands."""
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(written: dict) -> dict:
    """Return cluster.yaml with Ray's defaults filled in, as `ray up` first does."""
    return prepare_config(copy.deepcopy(written))


@pytest.fixture(scope="module")
def project() -> dict:
    """Return the project table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def ray_schema() -> dict:
    """Return the properties of a cluster file in Ray's schema."""
    schema_file = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
    return json.loads(schema_file.read_text())["properties"]


def all_commands(config: dict) -> list[str]:
    node_types = config["available_node_types"].values()
    owners = [config, *node_types]
    return [command for owner in owners for key in COMMANDS for command in owner.get(key, [])]


def images(config: dict) -> list[str]:
    sections = [
        config["docker"],
        *(t.get("docker", {}) for t in config["available_node_types"].values()),
    ]
    return [value for section in sections for key, value in section.items() if key.endswith("image")]


def pins(config: dict) -> dict[str, Requirement]:
    quoted = re.findall(r"'([^']+)'", " ".join(config["setup_commands"]))
    requirements = [Requirement(text) for text in quoted]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def exact_version(requirement: Requirement) -> str:
    [specifier] = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not an exact pin"
    return specifier.version


def test_rays_schema_accepts_the_file(prepared: dict) -> None:
    validate_config(prepared)


def test_every_key_of_every_node_type_is_one_that_ray_knows(written: dict) -> None:
    known = ray_schema()["available_node_types"]["patternProperties"][".*"]["properties"]
    for name, node_type in written["available_node_types"].items():
        assert set(node_type) <= set(known), name


def test_a_misspelt_key_of_a_node_type_is_refused(written: dict) -> None:
    misspelt = copy.deepcopy(written)
    misspelt["available_node_types"]["cpu"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(misspelt))


def test_what_rays_schema_lets_pass_is_spelt_as_ray_and_ec2_spell_it(written: dict) -> None:
    assert set(written["provider"]) <= set(ray_schema()["provider"]["properties"])
    for name, node_type in written["available_node_types"].items():
        assert set(node_type["node_config"]) <= EC2_KEYS, name


def test_every_command_is_ours_and_not_rays_default(written: dict, prepared: dict) -> None:
    setup = written["setup_commands"]
    assert setup
    assert prepared["setup_commands"] == setup
    assert prepared["head_setup_commands"] == setup + written["head_setup_commands"]
    assert prepared["worker_setup_commands"] == setup + written["worker_setup_commands"]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert prepared[key] == written[key]


def test_no_command_or_image_names_a_development_build_or_a_url(prepared: dict) -> None:
    for text in all_commands(prepared) + images(prepared):
        assert not re.search(r"nightly|latest|://|\.whl|\.dev\d|--pre\b|index-url", text), text


def test_what_the_machines_install_is_pinned_within_pyproject(written: dict, project: dict) -> None:
    pinned = pins(written)
    for requirement in map(Requirement, project["dependencies"]):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"setup_commands do not install {name}"
        assert requirement.specifier.contains(exact_version(pinned[name])), name
        assert requirement.extras <= pinned[name].extras, name


def test_the_machines_install_nothing_that_pyproject_does_not_ask_for(written: dict, project: dict) -> None:
    wanted = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert set(pins(written)) <= wanted


def test_every_image_has_the_pinned_ray_and_a_python_that_tfray_runs_on(written: dict, project: dict) -> None:
    supported = SpecifierSet(project["requires-python"])
    for image in images(written):
        ray_version, major, minor = re.search(r":([\d.]+)-py(\d)(\d+)", image).groups()
        assert ray_version == exact_version(pins(written)["ray"])
        assert supported.contains(f"{major}.{minor}.0"), image


def test_the_dashboard_listens_on_localhost_alone(prepared: dict) -> None:
    starts = " ".join(prepared["head_start_ray_commands"])
    assert re.findall(r"--dashboard-host[= ](\S+)", starts) == ["127.0.0.1"]


def test_the_head_autoscales_and_reports_no_usage(prepared: dict) -> None:
    starts = " ".join(prepared["head_start_ray_commands"])
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in starts
    assert "--disable-usage-stats" in starts


def test_the_head_is_given_no_work_and_is_alone_of_its_type(prepared: dict) -> None:
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0


def test_groups_start_empty_and_their_sizes_agree_with_the_whole(prepared: dict) -> None:
    node_types = prepared["available_node_types"].values()
    for node_type in node_types:
        assert 0 == node_type["min_workers"] <= node_type["max_workers"]
    assert sum(node_type["max_workers"] for node_type in node_types) == prepared["max_workers"]


def test_corpus_machines_are_spot_and_training_machines_are_not(prepared: dict) -> None:
    node_types = prepared["available_node_types"]
    assert node_types["cpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in node_types["gpu"]["node_config"]
    assert "InstanceMarketOptions" not in node_types["head"]["node_config"]
