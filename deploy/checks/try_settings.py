"""try_settings.py BINARIES: what each container is given, tried with `--check` of the real binary."""

import os
import subprocess
import sys
from pathlib import Path

import chart
from build import Build, binary, environment

# Others bring the Secrets; values of the right form will do.
SECRETS = {
    "AMQP_URL": "amqps://user:password@rabbitmq", "MONGO_URI": "mongodb://mongodb", "SIGNING_KEYS": "0123456789abcdef",
    "CONSOLE_TOKEN": "0123456789abcdef", "RESPOND_API_TOKEN": "token",
}


def main(binaries):
    failed = 0
    for case in chart.CASES:
        for problem in problems(binaries, Build(*chart.render(chart.values(case)))):
            failed = 1
            print(f"{case}: {problem}", file=sys.stderr)
    return failed


def problems(binaries, build):
    for _, _, container in build.ours():
        given = {name: value or secret(name) for name, value in environment(container).items()}
        # The file is in the pod.
        given.pop("SSL_CERT_FILE", None)
        # Where no .env is.
        checked = subprocess.run([binaries / binary(container), "--check"], env=given, cwd="/", capture_output=True, text=True)
        if checked.returncode != os.EX_OK:
            yield f"{container['name']} refuses its settings:\n{checked.stderr}"


def secret(name):
    return next((value for ending, value in SECRETS.items() if name.endswith(ending)), "")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
