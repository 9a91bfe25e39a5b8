"""What a contender's adapter says. A peer is one file here, and its name in `TOOLS` of `bench/contenders.py`.

Each method that stands for a phase returns a command line; `phases` says which there are. The bench runs and measures them.
"""

import os

BACKUPS = ("full", "unchanged", "pgbench", "append")
DELTAS = ("delta", "delta-changed")
WAL = ("push", "drain", "replay")


class Adapter:
    name = ""
    level = None  # its usual level of compression
    phases = ()
    stores = ("folder",)
    compares = False  # whether a server can be started on what it restores
    processes = ()  # names of its processes, as the kernel shows them
    environment = {}  # variables that its commands need

    def __init__(self, setup, label, level, store):
        self.setup, self.label, self.level, self.store = setup, label, level, store
        self.folder = os.path.join(setup.folder, label.replace(":", "-").replace("@", "-"))
        self.repository = os.path.join(self.folder, "repository")
        self.host = setup.cluster.folder  # where the server is reached: its socket
        if store == "s3":
            self.repository = setup.server.folder_of(os.path.basename(self.folder))

    @classmethod
    def missing(cls, setup):
        """Why it cannot be measured here, or nothing."""

    def version(self):
        return ""

    def prepare(self):
        """Makes a new, empty repository."""

    def archive_command(self, asynchronous=False):
        return "true"

    def backup(self, full):
        raise NotImplementedError

    def restore(self, into, delta=False):
        raise NotImplementedError

    def push(self, segment):
        raise NotImplementedError

    def restore_command(self, data, asynchronous=True):
        raise NotImplementedError

    def check(self):
        raise NotImplementedError

    def verify(self):
        raise NotImplementedError
