"""restic over the files of the data directory: what a good general tool does without knowing PostgreSQL."""

import os
import shutil

from tools.adapter import BACKUPS, Adapter


class Restic(Adapter):
    name = "restic"
    phases = (*BACKUPS, "restore", "check", "verify")

    @classmethod
    def missing(cls, setup):
        return None if shutil.which("restic") else "restic is not installed"

    def version(self):
        return self.setup.call(["restic", "version"]).strip()

    @property
    def environment(self):
        return {"RESTIC_PASSWORD": "not-a-secret-in-a-benchmark", "GOMAXPROCS": str(self.setup.processes)}

    def command(self, *arguments):
        return ["restic", "-q", "-r", self.repository, "--cache-dir", f"{self.folder}/cache", *arguments]

    def prepare(self):
        self.setup.fresh_folder(self.folder)
        self.setup.call(self.command("init"), self.environment)

    def backup(self, full):
        return self.command("backup", self.setup.cluster.data, "--exclude", f"{self.setup.cluster.data}/pg_wal/*")

    def restore(self, into, delta=False):
        return self.command("restore", "latest", "--target", into)

    def check(self):
        return self.command("check")

    def verify(self):
        return self.command("check", "--read-data")
