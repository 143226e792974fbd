"""One version everywhere, and how long what is pinned is maintained."""

import datetime
import re
import tomllib

from files import DEPLOY, ROOT

# When the support of a series that we pin ends.
SUPPORT_ENDS = {
    # Only the newest release is maintained. It posts samples on one machine: once a year is enough.
    # https://curl.se/docs/releases.html
    "curlimages/curl:8.22": "2027-09-02",
    # Debian 12 with long-term support: https://wiki.debian.org/LTS
    "gcr.io/distroless/cc-debian12:nonroot": "2028-06-30",
    # https://grafana.com/docs/grafana/latest/upgrade-guide/when-to-upgrade/
    "grafana/grafana:13.2": "2027-05-18",
    # https://www.mongodb.com/legal/support-policy/lifecycles
    "mongo:8.0": "2029-10-31",
    # With long-term support: https://prometheus.io/docs/introduction/release-cycle/
    "prom/prometheus:v3.13": "2027-07-31",
    # Only the newest series is maintained, and its end isn't announced: look again then.
    # https://github.com/rabbitmq/rabbitmq-server/blob/main/COMMUNITY_SUPPORT.md
    "rabbitmq:4.3": "2027-03-31",
    # On Debian 12, see above.
    "rust:1.95": "2028-06-30",
}
# Ours, and stages of the Dockerfile.
UNPINNED = re.compile(r"(.*/)?penstock[-/]|registry\.example\.com/|runtime$|build$")
IMAGE = re.compile(r"^\s*(?:-\s+)?(?:image|FROM):?\s+([\w./-]+:[\w.-]+|[\w./-]+)(?:\s|@|$)", re.MULTILINE)


def version():
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]


def manifests():
    return [file for file in sorted(DEPLOY.rglob("*")) if file.suffix in (".yaml", ".yml") or file.name in ("Dockerfile", "README.md")]


def problems(today=None):
    """Whatever names a version of Penstock names that of Cargo.toml, and what we pin of others is maintained."""
    yield from version_problems(version())
    for name, image in sorted(set(pins())):
        if problem := pin_problem(image, today or datetime.date.today()):
            yield f"{name}: {problem}"


def version_problems(wanted):
    named = [("CHANGELOG.md", re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1])]
    for file in manifests():
        text, name = file.read_text(), str(file.relative_to(ROOT))
        named += [(name, found) for found in re.findall(r"penstock[-/](?:ingest|worker):(\d[\w.-]*)", text)]
        if file.name == "Chart.yaml":
            named += [(name, found) for found in re.findall(r'^(?:version|appVersion): "?([\w.-]+)"?', text, re.MULTILINE)]
    for name, found in named:
        if found != wanted:
            yield f"{name}: {found} is not the version in Cargo.toml, {wanted}"


def pin_problem(image, today):
    if image not in SUPPORT_ENDS:
        return f"when does the support of {image} end? Put it into deploy/checks/versions.py"
    if datetime.date.fromisoformat(SUPPORT_ENDS[image]) < today:
        return f"the support of {image} ended on {SUPPORT_ENDS[image]}: pin a newer one, and put its end into deploy/checks/versions.py"
    return None


def pins():
    """Each file and the release that it pins of other people's images, such as mongo:8.0."""
    for file in manifests():
        for image in IMAGE.findall(file.read_text()):
            if not UNPINNED.match(image) and "{{" not in image:
                name, _, tag = image.partition(":")
                yield str(file.relative_to(ROOT)), f"{name}:{'.'.join(tag.split('-')[0].split('.')[:2])}"
