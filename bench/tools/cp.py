"""`cp`, with fsync where a segment must be safe: what carrying WAL costs when nothing is done to it."""

import os

from tools.adapter import Adapter


class Cp(Adapter):
    name = "cp"
    processes = ("cp", "sync", "sh")
    phases = ("push", "drain", "replay")

    def prepare(self):
        self.setup.fresh_folder(self.folder)
        self.setup.fresh_folder(self.repository)
        script = f'test ! -f {self.repository}/"$2" && cp "$1" {self.repository}/"$2" && sync {self.repository}/"$2" {self.repository}\n'
        self.setup.write(os.path.join(self.folder, "push"), script)

    def archive_command(self, asynchronous=False):
        return f"sh {self.folder}/push %p %f"

    def push(self, segment):
        return ["sh", f"{self.folder}/push", segment, os.path.basename(segment)]

    def restore_command(self, data, asynchronous=True):
        return f"cp {self.repository}/%f %p"
