"""The Kubernetes manifests, built by kustomize and held against the API's own schemas.

Needs `kustomize` on the PATH; the schemas come with kubernetes-validate.
"""

from __future__ import annotations

import copy
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from wds.config import Settings
from wds.telemetry import metrics

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"


@pytest.fixture(scope="module")
def built() -> list[dict]:
    done = subprocess.run(
        ["kustomize", "build", str(KUBERNETES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(built: list[dict], kind: str) -> dict[str, dict]:
    return {each["metadata"]["name"]: each for each in built if each["kind"] == kind}


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
def test_manifests_follow_the_schema_of_the_api(built, version):
    assert len(built) >= 10
    for manifest in built:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_control_schema_finds_faults(built):
    wrong = copy.deepcopy(of_kind(built, "Deployment")["dispatcher"])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.34", strict=True)


def test_containers_are_confined_bounded_and_probed(built):
    deployments = of_kind(built, "Deployment")
    assert set(deployments) == {"ingest", "dispatcher"}
    for deployment in deployments.values():
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        [container] = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert {"requests", "limits"} <= set(container["resources"])
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_deployments_each_have_a_disruption_budget_and_an_autoscaler(built):
    names = set(of_kind(built, "Deployment"))
    assert set(of_kind(built, "PodDisruptionBudget")) == names
    scalers = of_kind(built, "HorizontalPodAutoscaler")
    assert {each["spec"]["scaleTargetRef"]["name"] for each in scalers.values()} == names
    for budget in of_kind(built, "PodDisruptionBudget").values():
        pods = of_kind(built, "Deployment")[budget["metadata"]["name"]]["spec"]["template"]
        chosen = budget["spec"]["selector"]["matchLabels"]
        assert chosen.items() <= pods["metadata"]["labels"].items()


def test_dispatcher_autoscaler_uses_a_metric_that_the_adapter_serves(built):
    [metric] = of_kind(built, "HorizontalPodAutoscaler")["dispatcher"]["spec"]["metrics"]
    name = metric["external"]["metric"]["name"]
    [family] = metrics.DUE_EVENTS.describe()
    assert name == family.name
    [rule] = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"][
        "external"
    ]
    assert rule["name"]["as"] == name and rule["seriesQuery"].startswith(name)


def test_manifests_name_only_existing_settings():
    known = {spec.metadata["env"] for spec in fields(Settings)}
    text = "\n".join(path.read_text() for path in KUBERNETES.glob("*.yaml"))
    assert set(re.findall(r"\bWDS_[A-Z_]+[A-Z]", text)) <= known
