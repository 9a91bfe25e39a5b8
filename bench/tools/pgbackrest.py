"""pgBackRest as Debian ships it: AES-256-CBC repository, zstd, the processes we were given; otherwise its own defaults."""

import os
import shutil


class PgBackRest:
    name = "pgbackrest"

    def __init__(self, setup):
        self.setup = setup
        self.folder = os.path.join(setup.folder, self.name)
        self.repository = os.path.join(self.folder, "repository")
        self.conf = os.path.join(self.folder, "pgbackrest.conf")

    @staticmethod
    def missing(setup):
        return None if shutil.which("pgbackrest") else "pgbackrest is not installed"

    def version(self):
        return self.setup.call(["pgbackrest", "version"]).strip()

    def prepare(self):
        """Makes a new, empty repository."""
        cluster, setup = self.setup.cluster, self.setup
        setup.fresh_folder(self.folder)
        lines = [
            "[global]", f"repo1-path={self.repository}", "repo1-cipher-type=aes-256-cbc", "repo1-cipher-pass=not-a-secret-in-a-benchmark",
            "repo1-retention-full=10", "compress-type=zst", f"compress-level={setup.level}", f"process-max={setup.processes}",
            "start-fast=y", f"lock-path={self.folder}/lock", f"log-path={self.folder}/log", f"spool-path={self.folder}/spool",
            "log-level-console=warn", "log-level-file=off",
            "[main]", f"pg1-path={cluster.data}", f"pg1-port={cluster.port}", f"pg1-socket-path={cluster.folder}", "pg1-user=postgres",
        ]  # fmt: skip
        setup.write(self.conf, "\n".join(lines) + "\n")
        setup.call(self.command("stanza-create"))

    def command(self, *arguments):
        return ["pgbackrest", f"--config={self.conf}", "--stanza=main", *arguments]

    def archive_command(self):
        return " ".join(self.command("archive-push", "%p"))

    def backup(self, full):
        return self.command("backup", "--type=full" if full else "--type=incr")

    def restore(self, into):
        return self.command("restore", f"--pg1-path={into}")

    def push(self, segment):
        return self.command("archive-push", segment)
