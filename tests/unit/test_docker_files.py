"""What docker/ promises: locked services, nothing published beyond loopback, secrets by files, no foreign hosts."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from inference.settings import ApiSettings, Scope, load_settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
#: users of Redis; all other services of ours are workers
ROLES = {"api": "api", "dashboard": "dashboard", "admin": "admin"}


def mounted_secrets(service: dict[str, Any]) -> dict[str, str]:
    """Name in /run/secrets → secret."""
    named = [{"source": one} if isinstance(one, str) else one for one in service.get("secrets", [])]
    return {one.get("target", one["source"]): one["source"] for one in named}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docker") / "secrets"
    subprocess.run([DOCKER / "make-secrets.sh", folder], check=True, timeout=30)
    return folder


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_follow_the_compose_specification(name: str) -> None:
    checked = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / name],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def test_hadolint_has_nothing_to_say_against_the_dockerfile() -> None:
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", DOCKER / "Dockerfile"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_only_what_people_and_clients_use_is_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"api", "dashboard", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert {name for name, service in SERVICES.items() if service["networks"] != ["inside"]} == set(published)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_locked_and_has_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["stop_grace_period"]
    assert service["mem_limit"]
    assert service["logging"]["options"]["max-size"]


def test_every_secret_comes_from_a_file_that_the_script_makes(secrets: Path) -> None:
    named = {secret["file"] for secret in COMPOSE["secrets"].values()}
    for_people = {"client_key", "reader_broker_url", "reader_cache_url"}  # and for services of theirs
    assert named == {f"./secrets/{file.name}" for file in secrets.iterdir() if file.name not in for_people}
    used = {name for service in SERVICES.values() for name in mounted_secrets(service).values()}
    assert used == set(COMPOSE["secrets"])


def test_services_that_not_everybody_needs_are_not_started_with_the_others() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" in service} == {"admin", "grafana", "listen"}
    assert SERVICES["admin"]["restart"] == "no"


def test_every_service_has_the_urls_of_its_own_role_and_each_redis_its_own_users() -> None:
    for name, service in SERVICES.items():
        held = {secret for secret in mounted_secrets(service).values() if secret.endswith(("_url", "_users"))}
        if name in OURS:
            assert held == {f"{ROLES.get(name, 'worker')}_{server}_url" for server in ("broker", "cache")}, name
        else:
            assert held == ({f"{name}_users"} if name in ("broker", "cache") else set()), name


def test_each_server_has_the_users_of_the_one_file_and_every_user_a_password_of_its_own(secrets: Path) -> None:
    rules = re.findall("^user .*$", (DOCKER / "redis" / "users.acl").read_text(), re.MULTILINE)
    passwords = []
    for server in ("broker", "cache"):
        written = (secrets / f"{server}_users").read_text()
        assert re.sub("#[0-9a-f]{64}", ">PASSWORD", written).splitlines() == rules
        for role in {*ROLES.values(), "worker"}:
            url = urlsplit((secrets / f"{role}_{server}_url").read_text())
            assert (url.username, url.hostname) == (f"forecache-{role}", server)
            passwords.append(str(url.password))
            assert f"user {url.username} on #{hashlib.sha256(passwords[-1].encode()).hexdigest()} " in written
    assert "user default off" in rules
    assert len(passwords) == len(set(passwords)) == 8


@pytest.mark.parametrize("client", ["client", "prometheus"])
def test_the_hash_that_the_api_gets_is_that_of_the_clients_key(secrets: Path, client: str) -> None:
    key = (secrets / f"{client}_key").read_text()
    assert (secrets / f"{client}_key_hash").read_text() == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def test_secrets_are_in_a_folder_of_their_owner_and_are_not_made_twice(secrets: Path) -> None:
    assert secrets.stat().st_mode & 0o777 == 0o700
    before = (secrets / "api_cache_url").read_text()
    again = subprocess.run([DOCKER / "make-secrets.sh", secrets], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert (secrets / "api_cache_url").read_text() == before


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_every_service_can_be_loaded(
    name: str, secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = OURS[name]
    for variable in [name for name in os.environ if name.startswith("FORECACHE_")]:
        monkeypatch.delenv(variable)
    for variable, value in service["environment"].items():
        if value is None:  # taken from whoever starts it
            continue
        if value.startswith("/run/secrets/"):
            value = str(secrets / mounted_secrets(service)[Path(value).name])
        monkeypatch.setenv(variable, value)
    (tmp_path / "forecache.toml").write_text('[models.delay]\npath = "models/delay"\n')
    settings = load_settings(tmp_path / "forecache.toml")
    user = f"forecache-{ROLES.get(name, 'worker')}"
    assert re.fullmatch(rf"redis://{user}:[0-9a-f]{{48}}@broker:6379/0", settings.redis_url)
    assert re.fullmatch(rf"redis://{user}:[0-9a-f]{{48}}@cache:6379/0", settings.cache_url)
    assert settings.redis.prefix == "forecache"
    assert set(settings.api.keys) == ({"client", "prometheus"} if name == "api" else set())
    if name == "api":
        assert set(settings.api.keys["client"].scopes) == set(Scope)
        assert settings.api.keys["prometheus"].scopes == [Scope.READ]
    assert (settings.dashboard.password is not None) == (name == "dashboard")


def test_workers_and_nobody_else_find_modules_of_the_users(tmp_path: Path) -> None:
    workers = {name: service for name, service in OURS.items() if "PYTHONPATH" in service["environment"]}
    assert set(workers) == {"batch", "realtime"}
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "rules_of_somebody.py").write_text("def features(ids):\n    return ids\n")
    for service in workers.values():
        place = service["environment"]["PYTHONPATH"]
        assert f"${{FORECACHE_FOLDER:-.}}/code:{place}:ro" in service["volumes"]
        # by the interpreter's options that the service has, from a folder without the module
        options = service["command"][1 : service["command"].index("-m")]
        code = (
            "from pathlib import Path; from inference.features.fallback_sources import load_function\n"
            "print(load_function('rules_of_somebody:features', Path('/nowhere'))(['E1']))"
        )
        done = subprocess.run(
            [sys.executable, *options, "-c", code], cwd="/", capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path / 'code'}{os.pathsep}{ROOT}"},
        )  # fmt: skip
        assert done.stdout == "['E1']\n", done.stderr


def test_the_page_has_every_folder_made_that_would_else_be_made_as_root() -> None:
    mounted = {volume.split(":-.}/")[1].split(":")[0] for volume in OURS["batch"]["volumes"] if "FOLDER" in volume}
    (made,) = re.findall(r"^mkdir -p (.+)$", (DOCKER / "README.md").read_text(), re.MULTILINE)
    assert set(re.findall(r'"\$FORECACHE_FOLDER"/(\w+)', made)) == mounted - {"forecache.toml"}


@pytest.mark.parametrize("argument", ["WORKER_EXTRAS", "WORKER_GPU_EXTRAS"])
def test_workers_hold_extras_that_there_are_with_databases_among_them_and_the_page_says_so(argument: str) -> None:
    (extras,) = re.findall(rf"^ARG {argument}=(\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"sql"} < set(extras.split(",")) <= set(known)
    assert f"| `{argument}` | `{extras}` |" in (DOCKER / "README.md").read_text()


def test_the_gpu_file_changes_services_that_there_are() -> None:
    gpu = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
    assert set(gpu["services"]) == {"batch", "realtime"}
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    targets = {service["build"]["target"] for service in [*OURS.values(), *gpu["services"].values()]}
    assert targets == {"api", "dashboard", "worker", "worker-gpu"} <= set(stages)


def test_prometheus_loads_the_rules_that_lie_beside_it_and_shows_its_key() -> None:
    scraped = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    assert all((DOCKER / "prometheus" / name).is_file() for name in scraped["rule_files"])
    (job,) = scraped["scrape_configs"]
    # the alert ForecacheDown asks for up{job="forecache"}
    assert job["job_name"] == "forecache"
    assert job["static_configs"][0]["targets"] == ["api:8000"]
    assert Path(job["authorization"]["credentials_file"]).name in SERVICES["prometheus"]["secrets"]


def test_images_name_no_registry() -> None:
    defaults = re.findall(r"\$\{\w+_IMAGE:-([^}]+)\}", (DOCKER / "compose.yaml").read_text())
    defaults += re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert len(defaults) == 5
    # a first part with a dot or a port would be a host
    assert [image for image in defaults if re.search(r"[.:]", image.split("/")[0]) and "/" in image] == []


def test_the_api_has_time_to_drain_and_is_told_how_much() -> None:
    grace = SERVICES["api"]["stop_grace_period"]
    assert SERVICES["api"]["environment"]["FORECACHE_API__STOP_TIMEOUT"] == grace
    settings = ApiSettings.model_validate({"stop_timeout": grace})
    assert (settings.stop_timeout or 0) >= settings.longest_stop_s
