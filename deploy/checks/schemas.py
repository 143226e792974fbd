"""Every resource against the strict schema of its kind: Kubernetes' own, or one of deploy/checks/schemas."""

import functools

import jsonschema
import kubernetes_validate.utils
import yaml

from files import DEPLOY

# From the oldest version that the chart is for (preStop.sleep) to the newest whose schemas there are.
VERSIONS = tuple(f"1.{minor}" for minor in range(30, 38))
# Or the files would be read again for each resource.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)
METADATA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 63},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def problems(resources, versions=VERSIONS):
    for resource in resources:
        name = f"{resource.get('kind')} {resource.get('metadata', {}).get('name')}"
        for error in errors(resource, versions):
            yield f"{name}: {error}"


def errors(resource, versions):
    schema = custom_schema(resource.get("kind"))
    if schema:
        for error in jsonschema.Draft202012Validator(schema).iter_errors(resource):
            yield f"{error.json_path}: {error.message}"
        return
    for version in versions:
        try:
            kubernetes_validate.validate(resource, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"Kubernetes {version} has no such kind, and deploy/checks/schemas neither"


@functools.cache
def custom_schema(kind):
    path = DEPLOY / "checks/schemas" / f"{kind}.yaml"
    if not path.exists():
        return None
    ours = yaml.safe_load(path.read_text())
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": ours["apiVersion"]},
            "kind": {"const": kind},
            "metadata": METADATA,
            "spec": ours["spec"],
        },
    }
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema
