"""The Helm chart: what it renders is valid for Kubernetes, watches metrics that exist, and runs."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from backline import __version__
from backline.cli import serve
from deploy.conftest import Podman
from docs.pages import ROOT, blocks, code, table
from support.lazy import lazy
from support.tools import run, tool

kubernetes_validate = lazy("kubernetes_validate")

CHART = ROOT / "deploy" / "helm" / "backline"
CLAIM = ("models.existingClaim=models",)
URL = ("models.url=s3://bucket/models",)
#: Every option of the chart, in values that do not exclude each other.
EVERYTHING = (
    "models.existingClaim=models", "models.subPath=music", "image.tag=v1",
    "imagePullSecrets[0].name=registry",
    "options.BACKLINE_MODEL_CONTROL_MODE=poll", "env[0].name=AWS_REGION", "env[0].value=eu",
    "envFrom[0].secretRef.name=bucket", "service.type=LoadBalancer", "service.annotations.a=b",
    "tls.secret=certificate", "auth.secret=keys", "serviceAccount.name=reader", "podAnnotations.a=b",
    "podLabels.a=b", "nodeSelector.gpu=none", "tolerations[0].key=gpu", "tolerations[0].operator=Exists",
    "topologySpreadConstraints[0].maxSkew=1", "topologySpreadConstraints[0].topologyKey=zone",
    "topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway", "podDisruptionBudget.enabled=true",
    "autoscaling.enabled=true", "autoscaling.cpuPercent=80", "networkPolicy.enabled=true",
    "networkPolicy.from[0].podSelector.matchLabels.a=b",
    "serviceMonitor.enabled=true", "serviceMonitor.labels.a=b", "serviceMonitor.keySecret=scraper",
    "prometheusRule.enabled=true",
    "dashboard.enabled=true", "ingress.enabled=true", "ingress.className=nginx",
    "ingress.tlsSecret=certificate",
    "ingress.annotations.a=b", "gateway.enabled=true", "gateway.parents[0].name=gateway",
    "gateway.hostnames[0]=models.example.org",
)  # fmt: skip
KEDA = (*URL, "keda.enabled=true", "keda.prometheus=http://prometheus:9090")
KEDA_ASKS = (*URL, "keda.enabled=true", "tls.secret=certificate", "keda.authentication=authority")
VERSIONS = ["1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"]
#: Kinds that are not part of Kubernetes, so that it has no schema for them.
CUSTOM = {"ScaledObject", "ServiceMonitor", "PrometheusRule", "HTTPRoute", "GRPCRoute"}


def _set(values: tuple[str, ...]) -> list[str]:
    return [argument for value in values for argument in ("--set", value)]


def render(*values: str, file: Path | None = None) -> list[dict[str, Any]]:
    files = [] if file is None else ["--values", str(file)]
    text = run("helm", "template", "release", str(CHART), "--namespace", "ml", *files, *_set(values))
    return [document for document in yaml.safe_load_all(text) if document]


def _environment(documents: list[dict[str, Any]]) -> dict[str, str]:
    """The variables of the server's container that have a value."""
    (deployment,) = (one for one in documents if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    names = [one["name"] for one in container["env"]]
    assert len(set(names)) == len(names)
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


@pytest.mark.parametrize(
    "values",
    [CLAIM, URL, EVERYTHING, KEDA, KEDA_ASKS],
    ids=["claim", "url", "everything", "keda", "keda asks"],
)
def test_the_chart_renders_valid_manifests(values: tuple[str, ...]) -> None:
    run("helm", "lint", "--strict", str(CHART), *_set(values))
    documents = render(*values)

    assert {"Deployment", "Service"} <= {document["kind"] for document in documents}
    for document in documents:
        if document["kind"] not in CUSTOM:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)
        else:
            assert document["apiVersion"]
            assert document["spec"]


def test_everything_is_rendered_once() -> None:
    kinds = sorted(document["kind"] for document in render(*EVERYTHING))

    assert kinds == [
        *("ConfigMap", "Deployment", "GRPCRoute", "HTTPRoute", "HorizontalPodAutoscaler", "Ingress"),
        *("NetworkPolicy", "PodDisruptionBudget", "PrometheusRule", "Service", "Service", "ServiceMonitor"),
    ]


def test_keda_asks_a_pod_unless_it_has_prometheus() -> None:
    (scaled,) = (one["spec"] for one in render(*KEDA_ASKS) if one["kind"] == "ScaledObject")
    (by_prometheus,) = (one["spec"] for one in render(*KEDA) if one["kind"] == "ScaledObject")

    assert scaled["triggers"] == [
        {
            "type": "external",
            "metricType": "Value",
            "metadata": {"scalerAddress": "release-backline.ml.svc:8001", "enableTLS": "true"},
            "authenticationRef": {"name": "authority"},
        }
    ]
    assert [trigger["type"] for trigger in by_prometheus["triggers"]] == ["prometheus"]


def test_the_chart_installs_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["appVersion"] == __version__


def test_pods_are_restricted() -> None:
    (deployment,) = (one for one in render(*CLAIM) if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]

    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), "set models.url (such as s3://bucket/models) or models.existingClaim"),
        ((*URL, *CLAIM), "models.url and models.existingClaim exclude each other"),
        ((*URL, "models.subPath=music"), "add the folder to the URL"),
        ((*URL, "replica=2"), "replica"),
        ((*URL, "options.BACKLINE_MEMORY_BUGDET=2GiB"), "BACKLINE_MEMORY_BUGDET"),
        ((*URL, "options.BACKLINE_HTTP_PORT=80"), "set ports.http instead"),
        ((*URL, "resources.limit.memory=4Gi"), "limit"),
        ((*URL, "ports.http=0"), "ports"),
        ((*KEDA, "autoscaling.enabled=true"), "enable one of them"),
        ((*KEDA, "keda.minReplicas=0"), "minReplicas"),
        ((*URL, "gateway.enabled=true"), "gateway.parents is needed"),
    ],
    ids=[
        *(
            "no-models",
            "two-places",
            "folder-of-url",
            "unknown",
            "option",
            "option-of-another-value",
            "resources",
        ),
        *("port", "two-scalers", "scale-to-zero", "parents"),
    ],
)
def test_values_that_cannot_work_are_refused(values: tuple[str, ...], message: str) -> None:
    done = subprocess.run(
        [tool("helm"), "template", "release", str(CHART), *_set(values)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert done.returncode
    assert message in done.stderr


def test_the_chart_knows_every_option_of_the_server() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = schema["properties"]["options"]["properties"]

    assert known.keys() == {param.envvar for param in serve.command.params if param.envvar}


def test_a_large_number_in_a_file_of_values_reaches_the_server_in_digits(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("options: {BACKLINE_HTTP_MAX_INPUT_SIZE: 134217728, BACKLINE_NO_GRPC: true}\n")

    found = _environment(render(*URL, file=values))

    assert found["BACKLINE_HTTP_MAX_INPUT_SIZE"] == "134217728"
    assert found["BACKLINE_NO_GRPC"] == "true"


def test_the_server_knows_the_names_of_its_ingress_and_gateway() -> None:
    names = (
        "ingress.enabled=true", "ingress.host=a.example.org", "gateway.enabled=true",
        "gateway.parents[0].name=g", "gateway.hostnames[0]=*.example.org",
    )  # fmt: skip
    own = "options.BACKLINE_ALLOWED_HOST=release-backline.ml"

    assert "BACKLINE_ALLOWED_HOST" not in _environment(render(*URL))
    assert _environment(render(*URL, *names))["BACKLINE_ALLOWED_HOST"] == "a.example.org *.example.org"
    assert _environment(render(*URL, own, *names))["BACKLINE_ALLOWED_HOST"].split() == [
        "release-backline.ml", "a.example.org", "*.example.org",
    ]  # fmt: skip


def test_prometheus_scrapes_each_pod_once_and_sends_its_key() -> None:
    documents = render(*EVERYTHING)
    (monitor,) = (one for one in documents if one["kind"] == "ServiceMonitor")
    selector = monitor["spec"]["selector"]
    (absent,) = selector["matchExpressions"]
    labels = {
        one["metadata"]["name"]: one["metadata"]["labels"] for one in documents if one["kind"] == "Service"
    }
    chosen = [
        name
        for name, found in labels.items()
        if selector["matchLabels"].items() <= found.items() and absent["key"] not in found
    ]

    assert absent["operator"] == "DoesNotExist"
    assert sorted(labels) == ["release-backline", "release-backline-headless"]
    assert chosen == ["release-backline"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "scraper", "key": "BACKLINE_KEY"}}


@pytest.mark.parametrize(("tls", "protocol"), [("", "kubernetes.io/h2c"), ("certificate", None)])
def test_only_ports_without_tls_are_announced_as_cleartext(tls: str, protocol: str | None) -> None:
    services = [one for one in render(*URL, f"tls.secret={tls}") if one["kind"] == "Service"]
    ports = [port for one in services for port in one["spec"]["ports"] if port["name"] == "grpc"]

    assert [port.get("appProtocol") for port in ports] == [protocol, protocol]


def test_alerts_the_dashboard_and_scaling_use_metrics_that_exist() -> None:
    texts = [(CHART / "files" / name).read_text() for name in ("alerts.yaml", "dashboard.json")]
    texts.append((CHART / "templates" / "scaling.yaml").read_text())
    used = set(re.findall(r"\b(?:backline|nv)_[a-z_]+\b", "\n".join(texts)))
    known = {code(row["metric"])[0] for row in table("docs/operations.md", "metric")}

    assert len(used) > 8
    assert {name.removesuffix("_bucket") for name in used} <= known


def test_the_alerts_are_valid_rules() -> None:
    run("promtool", "check", "rules", str(CHART / "files" / "alerts.yaml"))


def test_the_dashboard_has_a_query_in_every_panel() -> None:
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())

    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])


def test_the_page_shows_valid_manifests() -> None:
    shown = [block for block in blocks("docs/deploy/kubernetes.md") if block.language == "yaml"]

    for block in shown:
        for document in yaml.safe_load_all(block.text):
            if "kind" in document:  # not a file of values
                kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    assert shown


def test_the_rendered_deployment_runs_and_answers(
    podman: Podman, image: str, repository: Path, tmp_path: Path
) -> None:
    name, _, _ = image.partition(":")
    documents = render(
        "models.existingClaim=backline-test-models", f"image.repository={name}", "image.tag=latest"
    )
    (deployment,) = (one for one in documents if one["kind"] == "Deployment")
    manifest = tmp_path / "deployment.yaml"
    manifest.write_text(yaml.safe_dump(deployment))
    podman.run("volume", "create", "--ignore", "backline-test-models")
    volume = podman.run("volume", "inspect", "--format", "{{.Mountpoint}}", "backline-test-models").strip()
    subprocess.run(["cp", "-r", f"{repository}/.", volume], check=True)
    try:
        podman.run("kube", "play", "--network=none", manifest)
        container = "release-backline-pod-backline"
        end = time.monotonic() + 30
        while "Ctrl-C stops" not in (log := podman.run("logs", container)):
            assert time.monotonic() < end, log
            time.sleep(0.05)
        answer = podman.run("exec", container, "backline", "infer", "add1", "--input", "INPUT0=zeros")
    finally:
        podman.run("kube", "down", manifest, status=None)
        podman.run("volume", "rm", "--force", "backline-test-models", status=None)

    assert "OUTPUT0" in answer
