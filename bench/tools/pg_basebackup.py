"""pg_basebackup: a tar compressed by the client with zstd, not encrypted; brought back by `tar`."""

import os
import shutil

from tools.adapter import Adapter


class PgBaseBackup(Adapter):
    name = "pg_basebackup"
    level = 1
    phases = ("full", "restore")
    compares = True

    @classmethod
    def missing(cls, setup):
        return None if shutil.which("zstd") else "zstd is not installed"

    def version(self):
        return self.setup.cluster.command("pg_basebackup", "--version").strip()

    def prepare(self):
        self.setup.fresh_folder(self.folder)

    def backup(self, full):
        cluster = self.setup.cluster
        compress = f"--compress=client-zstd:level={self.level},workers={self.setup.processes}"
        program = os.path.join(cluster.bin, "pg_basebackup")
        return [program, "-h", self.host, "-p", str(cluster.port), "-U", "postgres", "-D", self.repository, "-Ft", "-X", "fetch", "-c", "fast", compress]

    def restore(self, into, delta=False):
        return ["tar", "-I", "zstd", "-xf", os.path.join(self.repository, "base.tar.zst"), "-C", into]
