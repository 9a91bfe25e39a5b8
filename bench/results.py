"""What a run leaves behind: the commit it is of, and two files in the folder docs/performance."""

import json
import os
import subprocess

from install import ROOT


def commit():
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    return found.stdout.decode().strip()


def write_json(path, result):
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


def save(name, result, text):
    folder = os.path.join(ROOT, "docs", "performance")
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, f"{name}.json"), result)
    with open(os.path.join(folder, f"{name}.txt"), "w") as file:
        file.write(text)
