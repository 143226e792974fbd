"""What Prometheus, Grafana and the blackbox exporter are told."""

import json
import re
import urllib.parse

import yaml

from build import matches
from files import CHART, DEPLOY


def monitors(build):
    ports = {port["name"] for _, _, container in build.services() for port in container["ports"]}
    for monitor in build.of("ServiceMonitor", "PodMonitor"):
        name, offered = monitor["metadata"]["name"], ports
        ends = monitor["spec"].get("endpoints", monitor["spec"].get("podMetricsEndpoints"))
        if len({end["port"] for end in ends}) < len(ends):
            yield f"{monitor['kind']} {name}: two scrapes of one port write the same series `up`"
        # Its Service is the operator's.
        if name == "rabbitmq":
            continue
        if monitor["kind"] == "ServiceMonitor":
            services = monitored(build, monitor)
            offered = {port["name"] for service in services for port in service["spec"]["ports"]}
            if not services:
                yield f"ServiceMonitor {name} selects nothing"
        for end in ends:
            if end["port"] not in offered:
                yield f"{monitor['kind']} {name}: no port {end['port']}"
    scrapes = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    asked = [scrape["params"] for scrape in scrapes if "params" in scrape]
    rabbitmq = build.named("ServiceMonitor", "rabbitmq")
    if rabbitmq and [end["params"] for end in rabbitmq["spec"]["endpoints"] if "params" in end] != asked:
        yield "deploy/prometheus/prometheus.yml asks for other families of metrics"


def monitored(build, monitor):
    wanted = monitor["spec"]["selector"]["matchLabels"]
    return [s for s in build.of("Service") if matches(s["metadata"].get("labels", {}), wanted)]


def probes(build):
    rules = (CHART / "files/alerts.yaml").read_text()
    blackbox = (DEPLOY / "prometheus/blackbox.yml").read_text()
    hosts = {rule["host"] for ingress in build.of("Ingress") for rule in ingress["spec"]["rules"]}
    for probe in build.of("Probe"):
        if f'job="{probe["spec"].get("jobName")}"' not in rules:
            yield f"no alert knows the job of {probe['metadata']['name']}"
        for target in probe["spec"]["targets"]["staticConfig"]["static"]:
            url = urllib.parse.urlsplit(target)
            if url.hostname not in hosts:
                yield f"{target} is not where webhooks arrive"
            # An answer to any other path would count as an error, or not come from ingest.
            if f"https://YOUR-HOST{url.path} every" not in blackbox:
                yield f"deploy/prometheus/blackbox.yml doesn't know {target}"
        if probe["spec"]["module"] not in yaml.safe_load(blackbox)["modules"]:
            yield f"deploy/prometheus/blackbox.yml has no module {probe['spec']['module']}"


def alerts(build):
    for resource in build.of("PrometheusRule"):
        namespace = resource["metadata"]["namespace"]
        for rule in [rule for group in resource["spec"]["groups"] for rule in group["rules"]]:
            name = rule.get("alert", rule.get("record"))
            told = rule["labels"]
            for label in ("namespace", "cluster"):
                if "{" in rule["expr"] and label in told and not re.search(rf'{label}=~?"{told[label]}\b', rule["expr"]):
                    yield f"{name} reads what belongs to another {label}"
            if told.get("namespace") != namespace:
                yield f"{name}: Alertmanager can't tell whose it is"
            # A click on the page must lead there.
            if "alert" in rule and not re.match(r"https?://[^#]+#\w", rule["annotations"]["runbook_url"]):
                yield f"{name}: its runbook_url is no address"


def dashboard(build):
    config = build.named("ConfigMap", "penstock-dashboard")
    if config and json.loads(config["data"]["penstock.json"]) != json.loads((CHART / "files/dashboard.json").read_text()):
        yield "it is another dashboard"
    if config and config["metadata"]["labels"].get("grafana_dashboard") != "1":
        yield "Grafana's sidecar doesn't find it"
