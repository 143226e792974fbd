"""try_settings.py BINARIES BUILT...: what each container is given, tried with `--check` of the real binary."""

import os
import subprocess
import sys
from pathlib import Path

import rules
from files import load_all


def main(binaries, paths):
    failed = 0
    for path in paths:
        for problem in problems(binaries, rules.Build(load_all(path.read_text()))):
            failed = 1
            print(f"{path.stem}: {problem}", file=sys.stderr)
    return failed


def problems(binaries, build):
    for _, _, container in build.ours():
        name = container["name"]
        binary = rules.binary(container)
        # Secrets are brought by others; one of the right form will do.
        given = {k: v or SECRETS.get(k, "") for k, v in build.environment(container).items()}
        # Where no .env is.
        checked = subprocess.run([binaries / binary, "--check"], env=given, cwd="/", capture_output=True, text=True)
        if checked.returncode != os.EX_OK:
            yield f"{name} refuses its settings:\n{checked.stderr}"


SECRETS = {"AMQP_URL": "amqp://rabbitmq", "MONGO_URI": "mongodb://mongodb", "VIP_MONGO_URI": "mongodb://mongodb"}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]]))
