"""pgBackRest as Debian ships it: AES-256-CBC repository, zstd, bundles, the processes we were given; otherwise its defaults."""

import os
import shutil

from tools.adapter import BACKUPS, DELTAS, WAL, Adapter


class PgBackRest(Adapter):
    name = "pgbackrest"
    level = 3
    processes = ("pgbackrest",)
    phases = (*BACKUPS, "restore", *DELTAS, *WAL, "replay-one", "check", "verify")
    stores = ("folder", "s3")
    compares = True

    def __init__(self, setup, label, level, store):
        super().__init__(setup, label, level, store)
        self.conf = os.path.join(self.folder, "pgbackrest.conf")

    @classmethod
    def missing(cls, setup):
        return None if shutil.which("pgbackrest") else "pgbackrest is not installed"

    def version(self):
        return self.setup.call(["pgbackrest", "version"]).strip()

    def prepare(self):
        cluster, setup = self.setup.cluster, self.setup
        setup.fresh_folder(self.folder)
        where = [f"repo1-path={self.repository}"]
        if self.store == "s3":
            where = [f"repo1-path=/{setup.server.fresh_prefix(self.repository)}", *setup.server.pgbackrest_lines()]
        lines = [
            "[global]", *where, "repo1-cipher-type=aes-256-cbc", "repo1-cipher-pass=not-a-secret-in-a-benchmark", "repo1-bundle=y",
            "repo1-retention-full=10", "compress-type=zst", f"compress-level={self.level}", f"process-max={setup.processes}",
            "start-fast=y", f"lock-path={self.folder}/lock", f"log-path={self.folder}/log", f"spool-path={self.folder}/spool",
            "log-level-console=warn", "log-level-file=off",
            "[main]", f"pg1-path={cluster.data}", f"pg1-port={cluster.port}", f"pg1-socket-path={cluster.folder}", "pg1-user=postgres",
        ]  # fmt: skip
        setup.write(self.conf, "\n".join(lines) + "\n")
        setup.fresh_folder(f"{self.folder}/spool")
        setup.call(self.command("stanza-create"))

    def command(self, *arguments):
        return ["pgbackrest", f"--config={self.conf}", "--stanza=main", *arguments]

    def archive_command(self, asynchronous=False):
        return " ".join(self.command(*(["--archive-async"] if asynchronous else []), "archive-push", "%p"))

    def backup(self, full):
        return self.command("backup", "--type=full" if full else "--type=incr")

    def restore(self, into, delta=False):
        return self.command("restore", f"--pg1-path={into}", "--type=immediate", "--target-action=promote", *(["--delta"] if delta else []))

    def push(self, segment):
        return self.command("archive-push", segment)

    def restore_command(self, data, asynchronous=True):
        return " ".join(self.command(*(["--archive-async"] if asynchronous else []), f"--pg1-path={data}", "archive-get", "%f", "%p"))

    def check(self):
        return self.command("check")

    def verify(self):
        return self.command("verify")
