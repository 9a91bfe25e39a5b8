"""pgkeep, the release binary of this tree, copied to where the unprivileged user can run it."""

import os
import shutil


class PgKeep:
    name = "pgkeep"

    def __init__(self, setup):
        self.setup = setup
        self.folder = os.path.join(setup.folder, self.name)
        self.repository = os.path.join(self.folder, "repository")
        self.conf = os.path.join(self.folder, "pgkeep.toml")
        self.program = os.path.join(setup.folder, "pgkeep-program")
        shutil.copy(setup.pgkeep, self.program)
        os.chmod(self.program, 0o755)

    @staticmethod
    def missing(setup):
        return None if os.access(setup.pgkeep, os.X_OK) else f"{setup.pgkeep} is not there"

    def version(self):
        return self.setup.call([self.program, "--version"]).strip()

    def prepare(self):
        """Makes a new, empty repository."""
        cluster, setup = self.setup.cluster, self.setup
        setup.fresh_folder(self.folder)
        lines = [
            f'repository = "{self.repository}"', 'cluster = "main"', f'key_file = "{self.folder}/key"',
            f'database_url = "host={cluster.folder} port={cluster.port} user=postgres dbname=postgres"',
            f"compression_level = {setup.level}", f"workers = {setup.processes}",
        ]  # fmt: skip
        setup.write(self.conf, "\n".join(lines) + "\n")
        setup.call(self.command("init", "--recovery-key-file", f"{self.folder}/recovery-key"))

    def command(self, *arguments):
        return [self.program, "--config", self.conf, *arguments]

    def archive_command(self):
        return " ".join(self.command("wal", "push", "%p"))

    def backup(self, full):
        return self.command("backup", "--full") if full else self.command("backup")

    def restore(self, into):
        return self.command("restore", "--into", into, "--to", "latest")

    def push(self, segment):
        return self.command("wal", "push", segment)
