"""values.schema.json takes all settings that people may set, and no others."""

import json

from files import CHART, settings

# Settings that the chart works out itself, or takes from a Secret.
OWN = {
    "AMQP_URL", "TENANTS", "MONGO_URI", "DB_NAME", "SIGNING_KEYS", "RESPOND_API_TOKEN", "CONSOLE_TOKEN", "CONSOLE_HOST",
    "CONSOLE_PORT", "CONSOLE_BODIES", "PORT", "ADMIN_HOST", "ADMIN_PORT", "SPOOL_DIR", "SPOOL_MAX_BYTES", "REFUSAL_BUDGET",
    "DRAIN_DELAY", "SHUTDOWN_GRACE", "TERMINATION_GRACE", "WEBHOOK_WORKERS", "HOSTNAME",
}


def problems(schema=None):
    schema = schema or json.loads((CHART / "values.schema.json").read_text())
    properties = schema["properties"]
    known = {
        ("ingest", "worker"): properties["settings"],
        ("ingest",): properties["ingest"]["properties"]["settings"],
        ("worker",): properties["worker"]["properties"]["settings"],
    }
    for readers, part in known.items():
        right = {name for name, (_, found) in settings().items() if set(readers) <= set(found)} - OWN
        right -= {name for name in right if name.removeprefix("VIP_") in OWN}
        if wrong := set(part["propertyNames"]["enum"]) ^ right:
            yield f"values.schema.json is wrong about settings of {' and '.join(readers)}: {', '.join(sorted(wrong))}"
