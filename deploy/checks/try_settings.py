"""try_settings.py BINARIES DEV BUILT...: what each container is given, tried with `--check` of the real binary."""

import os
import subprocess
import sys
from pathlib import Path

import rules
from files import load_all


def main(binaries, paths):
    builds = [rules.Build(load_all(path.read_text())) for path in paths]
    # For the secrets that are brought: the example's.
    example = {c["name"]: builds[0].environment(c) for _, _, c in builds[0].ours()}
    failed = 0
    for path, build in zip(paths, builds):
        for _, _, container in build.ours():
            name = container["name"]
            given = {k: v or example[name][k] for k, v in build.environment(container).items()}
            checked = subprocess.run([binaries / name, "--check"], env=given, cwd=path.parent, capture_output=True, text=True)
            if checked.returncode != os.EX_OK:
                failed = 1
                print(f"{path.stem}: {name} refuses its settings:\n{checked.stderr}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]]))
