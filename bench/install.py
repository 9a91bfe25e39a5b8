"""Brings what a run needs: Debian's packages, our own release binaries and the S3 server."""

import os
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def script(lines):
    found = subprocess.run(["bash", "-c", f"set -e; source scripts/packages.sh; {lines}"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return found.stdout.decode()


def packages(*names):
    """PostgreSQL, Python and these, as far as they are missing."""
    script(f"need_postgresql; need python3 {' '.join(names)}")


def build(*names):
    """Release binaries of these packages of the workspace."""
    if names:
        subprocess.run(["cargo", "build", "--release", *(part for name in names for part in ("-p", name))], cwd=ROOT, check=True)


def s3_program():
    """The S3 server, which is compiled the first time."""
    return script('source scripts/cache.sh; need openssl; fetch_s3s_fs "$(cache_folder)"').split()[-1]
