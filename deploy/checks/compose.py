"""compose.yaml and what it mounts. Its schema is checked elsewhere."""

import json
import re

import yaml

from files import DEPLOY, admin_port, binaries, dockerfile, is_old_rabbitmq, settings


def load():
    files = {
        "compose": "compose.yaml",
        "prometheus": "prometheus/prometheus.yml",
        "datasources": "grafana/provisioning/datasources/prometheus.yaml",
        "dashboards": "grafana/provisioning/dashboards/penstock.yaml",
    }
    return {name: yaml.safe_load((DEPLOY / path).read_text()) for name, path in files.items()}


def problems(files):
    for rule in (services, volumes, waits, ours, scrapes, grafana):
        for problem in rule(files):
            yield f"{rule.__name__}: {problem}"


def services(files):
    for name, service in files["compose"]["services"].items():
        if "build" in service:
            if service["build"]["target"] not in dockerfile():
                yield f"{name}: the Dockerfile has no target {service['build']['target']}"
        elif not re.search(r":(?!latest$)v?\d+\.\d+\.\d+[\w.-]*$", service["image"]):
            yield f"{name}: {service['image']} is not pinned"
        elif is_old_rabbitmq(service["image"]):
            yield f"{name}: {service['image']} is too old for Penstock"
        if service.get("restart") != "unless-stopped":
            yield f"{name}: nobody starts it again"
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                yield f"{name}: {port} is open to everybody"


def volumes(files):
    declared = files["compose"]["volumes"]
    for name, service in files["compose"]["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                if not (DEPLOY / source).exists():
                    yield f"{name}: there is no {source}"
            elif source not in declared:
                yield f"{name}: {source} is not declared"


def waits(files):
    every = files["compose"]["services"]
    for name, service in every.items():
        for other, how in service.get("depends_on", {}).items():
            if other not in every:
                yield f"{name}: waits for {other}, which there isn't"
            elif how["condition"] == "service_healthy" and "healthcheck" not in every[other]:
                yield f"{name}: {other} tells nobody whether it is healthy"


def ours(files):
    for name in ("ingest", "worker"):
        service = files["compose"]["services"][name]
        given = service["environment"]
        for setting in given:
            if name not in binaries(setting, ["faster", "vip"]):
                yield f"{setting} is no setting of {name}"
        if service["stop_grace_period"] != given.get("TERMINATION_GRACE"):
            yield f"TERMINATION_GRACE of {name} is not its stop_grace_period"
        if not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
            yield f"{name} may do more than it needs"
        known = {int(given.get("ADMIN_PORT", admin_port(name)))}
        if name == "ingest":
            known.add(int(given.get("PORT", settings()["PORT"][0])))
        if {int(port.split(":")[-1]) for port in service.get("ports", [])} - known:
            yield f"{name} listens on {known} only"
    image = dockerfile()["ingest"][0]
    mounts = [volume.split(":")[1] for volume in files["compose"]["services"]["ingest"]["volumes"]]
    if not any(image["SPOOL_DIR"].startswith(mount + "/") for mount in mounts):
        yield f"SPOOL_DIR {image['SPOOL_DIR']} is on no volume"


def scrapes(files):
    every = files["compose"]["services"]
    for job in files["prometheus"]["scrape_configs"]:
        targets = [target for static in job.get("static_configs", []) for target in static["targets"]]
        # A fixed target is one of those that a name stands for, now this and now that.
        if any(target.startswith("worker:") for target in targets):
            yield "of several workers only one is scraped"
        targets += [f"{name}:{dns['port']}" for dns in job.get("dns_sd_configs", []) for name in dns["names"]]
        for target in targets:
            host, port = target.split(":")
            if host not in every:
                yield f"there is no {host}"
            elif host in ("ingest", "worker") and int(port) != admin_port(host):
                yield f"the admin port of {host} isn't {port}"
    for path in files["prometheus"]["rule_files"]:
        if f">/etc/prometheus/{path}\n" not in every["prometheus"]["entrypoint"][-1]:
            yield f"nobody writes {path}"


def grafana(files):
    service = files["compose"]["services"]["grafana"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}
    folder = files["dashboards"]["providers"][0]["options"]["path"]
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    if home not in mounted or not home.startswith(folder + "/"):
        yield f"no dashboard is mounted on {home}"
    source = files["datasources"]["datasources"][0]
    url = re.fullmatch(r"http://(\w+):9090", source["url"])
    if not url or url[1] not in files["compose"]["services"]:
        yield f"nobody answers on {source['url']}"
    if source["jsonData"]["timeInterval"] != files["prometheus"]["global"]["scrape_interval"]:
        yield "timeInterval is not the scrape_interval of Prometheus"
    if home in mounted and (path := DEPLOY / mounted[home]).exists():
        used = set(re.findall(r'"uid": *"([^"$]+)"', json.dumps(json.loads(path.read_text()).get("panels", []))))
        if used - {source["uid"], "-- Grafana --", "-- Mixed --", "-- Dashboard --"}:
            yield f"the dashboard asks {sorted(used)}, the datasource is {source['uid']}"
