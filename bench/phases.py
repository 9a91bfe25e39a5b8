"""The phases of a round. In each of them the contenders have their turns one after the other, on the same state of the cluster."""

import os
import random

import measure
import wal_phases
from cluster import Cluster
from datasets import append
from setup import BIN

PAGE = 8192
CHANGED_SHARE = 0.02


class Round:
    def __init__(self, setup, arguments, contenders, number, record):
        self.setup, self.arguments, self.contenders, self.number = setup, arguments, contenders, number
        self.record = record  # called with (contender's label, phase, figures)

    def run(self):
        setup, cluster = self.setup, self.setup.cluster
        cluster.settle()
        for contender in self.contenders:
            contender.tool.prepare()
        self.backups("full", full=True)
        self.backups("unchanged")
        if self.taking("pgbench"):
            with cluster.durably():
                cluster.write_for(self.arguments.seconds)
            self.backups("pgbench")
        if self.taking("append"):
            append(cluster, 100, self.number)
            self.backups("append")
        for contender in self.contenders:
            if "restore" in contender.phases:
                self.restores(contender)
        for phase in ("check", "verify"):
            for contender in self.taking(phase):
                cluster.archive_with(contender.tool.archive_command())
                self.measured(contender, phase, getattr(contender.tool, phase)())
        wal_phases.run(self)
        for contender in self.contenders:
            setup.discard(contender.tool.folder)
            setup.discard(contender.tool.repository)

    def taking(self, phase):
        return [contender for contender in self.contenders if phase in contender.phases]

    def measured(self, contender, phase, command, sync=True):
        """Runs and measures one command of a contender, with the bytes and the requests that it cost."""
        tool, server = contender.tool, self.setup.server
        before = measure.folder_bytes(tool.repository)
        if server:
            server.reset()
        figures = self.setup.measure(command, tool.environment, sync)
        figures["repository_bytes"] = measure.folder_bytes(tool.repository) - before
        if server and tool.store == "s3":
            figures["requests"] = server.counts()
            figures["stored_bytes"] = figures["repository_bytes"] or before
        figures.pop("output")
        self.record(contender.label, phase, figures)

    def backups(self, phase, full=False):
        """A backup by each contender. One that skipped an earlier phase compares with what it has."""
        for contender in self.taking(phase):
            self.setup.cluster.settle()
            self.setup.cluster.archive_with(contender.tool.archive_command())
            self.measured(contender, phase, contender.tool.backup(full))
            self.setup.cluster.wait_archived()

    def restores(self, contender):
        """Restores, again over what is right, and again over what is not; in the first round the result is started."""
        setup, tool = self.setup, contender.tool
        setup.cluster.settle()
        folder = setup.fresh_folder(os.path.join(setup.folder, "restored"))
        into = setup.fresh_folder(os.path.join(folder, "data"))
        self.measured(contender, "restore", tool.restore(into))
        if "delta" in contender.phases:
            read_through(into)
            self.measured(contender, "delta", tool.restore(into, delta=True))
        if "delta-changed" in contender.phases:
            change_pages(into, self.number)
            read_through(into)
            self.measured(contender, "delta-changed", tool.restore(into, delta=True))
        if self.number == 1 and tool.compares:
            self.compare(contender, folder)
        setup.discard(folder)

    def compare(self, contender, folder):
        copy = Cluster(BIN, folder, self.setup.user, self.setup.cluster.port + 1)
        copy.start(f"-p {copy.port} -k {folder} -c archive_mode=off")
        same = copy.digest() == self.setup.cluster.digest()
        copy.stop()
        if not same:
            raise SystemExit(f"{contender.label}: the restored cluster differs from the source")


def read_through(folder):
    """Brings a directory into the page cache, whichever way it was written: everything measured is warm."""
    buffer = bytearray(1 << 20)
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def change_pages(data, seed):
    """Overwrites the middle of a fiftieth of the pages of every file of some size, as a crashed or half-copied directory has it."""
    chance = random.Random(seed)
    for parent, _, names in os.walk(os.path.join(data, "base")):
        for name in sorted(names):
            path = os.path.join(parent, name)
            pages = os.path.getsize(path) // PAGE
            with open(path, "r+b") as file:
                for page in sorted(chance.sample(range(pages), int(pages * CHANGED_SHARE))):
                    file.seek(page * PAGE + 4096)
                    file.write(b"changed.")
