"""One version everywhere, and how long what is pinned is maintained."""

import datetime
import re
import tomllib

from files import DEPLOY, ROOT

# When the maintainers' support of a pinned release ends; none if no end is known. From their own pages, and endoflife.date.
SUPPORT_ENDS = {
    "grafana/grafana:12.1": "2026-04-22",
    "grafana/grafana:13.2": "2027-05-18",
    "mongo:8.0": "2029-10-31",
    "prom/prometheus:v3.5": "2026-07-31",
    "rabbitmq:4.1": "2026-01-30",
    "rabbitmq:4.2": None,
    "rabbitmq:4.3": None,
    "rust:1.95": None,
}
# Ours, and what has no releases to choose from.
UNPINNED = re.compile(r"(.*/)?penstock[-/]|gcr\.io/distroless/|curlimages/|busybox|registry\.example\.com/|runtime$|build$")
IMAGE = re.compile(r"^\s*(?:-\s+)?(?:image|FROM):?\s+([\w./-]+:[\w.-]+|[\w./-]+)(?:\s|@|$)", re.MULTILINE)


def version():
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]


def manifests():
    return [file for file in sorted(DEPLOY.rglob("*")) if file.suffix in (".yaml", ".yml") or file.name == "Dockerfile"]


def problems():
    """Whatever names a version of Penstock names that of Cargo.toml."""
    wanted = version()
    named = [("CHANGELOG.md", re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1])]
    for file in manifests():
        text, name = file.read_text(), str(file.relative_to(ROOT))
        named += [(name, found) for found in re.findall(r"penstock[-/](?:ingest|worker):(\d[\w.-]*)", text)]
        named += [(name, found) for found in re.findall(r"penstock[-/](?:ingest|worker), newTag: (\d[\w.-]*)", text)]
        if file.name == "Chart.yaml":
            named += [(name, found) for found in re.findall(r'^(?:version|appVersion): "?([\w.-]+)"?', text, re.MULTILINE)]
    for name, found in named:
        if found != wanted:
            yield f"{name}: {found} is not the version in Cargo.toml, {wanted}"
    for name, image in pins():
        if image not in SUPPORT_ENDS:
            yield f"{name}: when does the support of {image} end? Put it into deploy/checks/versions.py"


def pins():
    """Each file and the release that it pins of other people's images, such as mongo:8.0."""
    for file in manifests():
        for image in IMAGE.findall(file.read_text()):
            if not UNPINNED.match(image) and "{{" not in image:
                name, _, tag = image.partition(":")
                yield str(file.relative_to(ROOT)), f"{name}:{'.'.join(tag.split('-')[0].split('.')[:2])}"


def ended(today=None):
    """Pins whose support has ended. Not a problem of a change, or every change would fail from that day on."""
    today = today or datetime.date.today()
    for name, image in sorted(set(pins())):
        ends = SUPPORT_ENDS.get(image)
        if ends and datetime.date.fromisoformat(ends) < today:
            yield f"{name}: the support of {image} ended on {ends}"
