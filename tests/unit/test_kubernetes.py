"""What deploy/kubernetes promises: valid manifests, locked pods, right probes, and no name that leads nowhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference.settings import ApiSettings, load_settings
from tests.support.lazy_imports import LazyModule

kubernetes_validate = LazyModule("kubernetes_validate")
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
README = (FOLDER / "README.md").read_text()
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
#: also the files that a user puts in place of others
FILES = [*KUSTOMIZATION["resources"], "batch-gpu.yaml", "listen.yaml"]
MANIFESTS: list[dict[str, Any]] = [one for file in FILES for one in yaml.safe_load_all((FOLDER / file).read_text())]
DEPLOYMENTS = {one["metadata"]["name"]: one for one in MANIFESTS if one["kind"] == "Deployment"}
KEDA = list(yaml.safe_load_all((FOLDER / "keda" / "scaled-objects.yaml").read_text()))


def pod_of(name: str) -> dict[str, Any]:
    pod: dict[str, Any] = DEPLOYMENTS[name]["spec"]["template"]["spec"]
    return pod


def container_of(name: str) -> dict[str, Any]:
    [container] = pod_of(name)["containers"]
    return dict(container)


@pytest.mark.parametrize("version", ["1.29", "1.32", "newest"])
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_each_manifest_follows_kubernetes_schema(manifest: dict[str, Any], version: str) -> None:
    wanted = kubernetes_validate.latest_version() if version == "newest" else version
    kubernetes_validate.validate(manifest, wanted, strict=True)


def test_every_file_is_used() -> None:
    files = {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(FILES)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_pods_have_no_rights(name: str) -> None:
    pod, container = pod_of(name), container_of(name)
    assert pod["automountServiceAccountToken"] is False
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    assert "cpu" not in container["resources"]["limits"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_labels_volumes_and_images_fit(name: str) -> None:
    deployment, pod, container = DEPLOYMENTS[name], pod_of(name), container_of(name)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert {one["name"] for one in container["volumeMounts"]} <= set(volumes)
    assert volumes["settings"]["configMap"]["name"] == KUSTOMIZATION["configMapGenerator"][0]["name"]
    assert container["image"] in {one["name"] for one in KUSTOMIZATION["images"]}
    assert len([mount["mountPath"] for mount in container["volumeMounts"]]) == len(
        {mount["mountPath"] for mount in container["volumeMounts"]}
    )


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_each_secret_of_a_pod_is_made_by_the_readme(name: str) -> None:
    [secret] = [one["secret"]["secretName"] for one in pod_of(name)["volumes"] if "secret" in one]
    entries = made_secrets()[secret]
    wanted = {
        Path(one["value"]).name for one in container_of(name)["env"] if str(one["value"]).startswith("/run/secrets/")
    }
    assert wanted <= entries


def made_secrets() -> dict[str, set[str]]:
    """The entries of each secret that the README's commands make."""
    made = {}
    for line in re.findall(r"kubectl -n forecache create secret .*", README):
        words = shlex.split(line)
        files = [word.removeprefix("--from-file=") for word in words if word.startswith("--from-file=")]
        made[words[6]] = {file.partition("=")[0] if "=" in file else Path(file).name for file in files}
    return made


def test_services_disruption_budgets_and_policies_select_pods() -> None:
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in DEPLOYMENTS.values()]
    for manifest in MANIFESTS:
        spec = manifest["spec"]
        selector = spec.get("podSelector") or spec.get("selector") or {}
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= labels.items() for labels in pods), manifest["metadata"]["name"]


def test_probes_ask_ports_that_the_container_has() -> None:
    for name in DEPLOYMENTS:
        container = container_of(name)
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "httpGet" in container.get(probe, {}):
                assert container[probe]["httpGet"]["port"] in ports


def test_a_pod_has_longer_to_end_than_its_process_takes() -> None:
    grace_s = pod_of("forecache-api")["terminationGracePeriodSeconds"]
    assert grace_s >= ApiSettings().drain + 15
    [told] = [one["value"] for one in container_of("forecache-api")["env"] if one["name"].endswith("STOP_TIMEOUT")]
    assert told == f"{grace_s}s"
    assert pod_of("forecache-batch")["terminationGracePeriodSeconds"] >= 300


def test_scaled_objects_scale_what_is_there_by_metrics_that_the_api_has() -> None:
    authentication, *scaled = KEDA
    assert authentication["spec"]["secretTargetRef"][0]["name"] in made_secrets()
    service = next(one for one in MANIFESTS if one["kind"] == "Service" and one["metadata"]["name"] == "forecache-api")
    source = (ROOT / "app" / "api" / "metrics.py").read_text()
    for one in scaled:
        assert one["spec"]["scaleTargetRef"]["name"] in DEPLOYMENTS
        [trigger] = one["spec"]["triggers"]
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
        metadata = trigger["metadata"]
        host = f"{service['metadata']['name']}.{KUSTOMIZATION['namespace']}.svc:{service['spec']['ports'][0]['port']}"
        assert metadata["url"] == f"http://{host}/metrics"
        metric, queue = re.fullmatch(r'(\w+)\{queue="(\w+)"\}', metadata["valueLocation"]).groups()  # type: ignore[union-attr]
        assert f'"{metric}"' in source
        assert queue in ("batch", "realtime")


def test_the_settings_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECACHE_CONFIG", str(FOLDER / "forecache.toml"))
    assert load_settings().models["delay"].batch.schedule == "30 2 * * *"
