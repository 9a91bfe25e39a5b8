"""The ceiling: the bare pipeline of `bench/limit`, no product code, over the same files."""

import os

from tools.adapter import Adapter


class Limit(Adapter):
    name = "limit"
    level = 1
    phases = ("full", "restore")

    @classmethod
    def missing(cls, setup):
        program = setup.programs[cls.name]
        return None if os.access(program, os.X_OK) else f"{program} is not there"

    def version(self):
        return f"{self.setup.processes} threads"

    def prepare(self):
        self.setup.fresh_folder(self.folder)

    def backup(self, full):
        return [
            self.setup.program(self.name), "full", self.setup.cluster.data, self.repository,
            "--threads", str(self.setup.processes), "--level", str(self.level),
        ]  # fmt: skip

    def restore(self, into, delta=False):
        return [self.setup.program(self.name), "restore", self.repository, into, "--threads", str(self.setup.processes)]
