"""pgkeep, the release binary of this tree."""

import os

from tools.adapter import BACKUPS, DELTAS, WAL, Adapter


class PgKeep(Adapter):
    name = "pgkeep"
    level = 1
    processes = ("pgkeep-program",)
    phases = (*BACKUPS, "restore", *DELTAS, *WAL)
    stores = ("folder", "s3")
    compares = True

    def __init__(self, setup, label, level, store):
        super().__init__(setup, label, level, store)
        self.conf = os.path.join(self.folder, "pgkeep.toml")
        self.program = setup.program(PgKeep.name)

    @classmethod
    def missing(cls, setup):
        program = setup.programs[PgKeep.name]
        return None if os.access(program, os.X_OK) else f"{program} is not there"

    def version(self):
        return self.setup.call([self.program, "--version"]).strip()

    def prepare(self):
        setup = self.setup
        setup.fresh_folder(self.folder)
        location, section = self.repository, ""
        if self.store == "s3":
            location, section = f"s3://{setup.server.bucket}/{setup.server.fresh_prefix(self.repository)}", setup.server.pgkeep_section()
        lines = [
            f'repository = "{location}"', 'cluster = "main"', f'key_file = "{self.folder}/key"',
            f'database_url = "host={self.host} port={setup.cluster.port} user=postgres dbname=postgres"',
            f'state_dir = "{self.folder}/state"', f"compression_level = {self.level}", f"workers = {setup.processes}", section,
        ]  # fmt: skip
        setup.write(self.conf, "\n".join(lines) + "\n")
        setup.call(self.command("init", "--recovery-key-file", f"{self.folder}/recovery-key"))

    def command(self, *arguments):
        return [self.program, "--config", self.conf, *arguments]

    def archive_command(self, asynchronous=False):
        return " ".join(self.command("wal", "push", "%p"))

    def backup(self, full):
        return self.command("backup", "--full") if full else self.command("backup")

    def restore(self, into, delta=False):
        # Recovery ends with the backup: the WAL of the time between the contenders' turns belongs to nobody.
        return self.command("restore", "--into", into, "--to", "immediate", *(["--delta"] if delta else []))

    def push(self, segment):
        return self.command("wal", "push", segment)

    def restore_command(self, data, asynchronous=True):
        return " ".join(self.command("wal", "get", "%f", "%p"))


class PgKeepSql(PgKeep):
    """The same with its files read through the server, over sessions on its socket."""

    name = "pgkeep_sql"
    phases = (*BACKUPS, "restore")

    def backup(self, full):
        return [*super().backup(full), "--mode", "sql"]
