"""What the rules compare with, read where it is written."""

import functools
import re
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent
CHART = DEPLOY / "helm/penstock"
ROOT = DEPLOY.parent
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@functools.cache
def settings():
    """Name → (default, binaries) of each setting in the tables of the binaries' README.md."""
    table = {}
    for name, default, readers in setting_rows():
        known = table.get(name, ("", ()))[1]
        table[name] = (default, known + readers)
    assert len(table) > 30, "README.md: the tables of settings can't be read"
    return table


def binaries(name, tenants):
    """Which binaries know a setting; `name` may end in _FILE, or begin with a tenant."""
    if name == "SSL_CERT_FILE":
        return ("ingest", "worker")
    name = name.removesuffix("_FILE")
    for tenant in tenants:
        name = name.removeprefix(tenant.upper().replace("-", "_") + "_")
    return settings().get(name, ("", ()))[1]


def admin_port(binary):
    return next(int(default) for name, default, readers in setting_rows() if name == "ADMIN_PORT" and binary in readers)


def setting_rows():
    """Name, default and binary, for each name in the tables; a name that both binaries read is in both."""
    for binary in ("ingest", "worker"):
        for line in (ROOT / binary / "README.md").read_text().partition("<!-- settings: begin -->")[2].splitlines():
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) == 6:
                for name in re.findall(r"`([A-Z_]+)`", cells[1]):
                    yield name, cells[2].strip("`"), (binary,)


def seconds(text):
    parts = re.fullmatch(r"(\d+)(ms|s|m|h|d)", text)
    if not parts:
        raise SystemExit(f"{text!r} is no duration such as 5s")
    return int(parts[1]) * UNITS[parts[2]]


def amount(text):
    """Bytes of a quantity such as 4Gi."""
    number, unit = re.fullmatch(r"(\d+)([KMGT]i)?", str(text)).groups()
    return int(number) << {None: 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}[unit]


def is_old_rabbitmq(image):
    """Before 4.0, a quorum queue ignores the priorities by which workers share queues."""
    version = re.match(r"(?:[\w./-]+/)?rabbitmq:(\d+)\.", image)
    return bool(version) and int(version[1]) < 4


@functools.cache
def dockerfile():
    """Target → (its environment, its exposed ports)."""
    targets, target = {}, None
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] == ["FROM"]:
            target = targets.setdefault(words[-1], ({}, []))
        elif words[:1] == ["ENV"]:
            target[0].update(word.split("=", 1) for word in words[1:])
        elif words[:1] == ["EXPOSE"]:
            target[1].extend(map(int, words[1:]))
    return targets
