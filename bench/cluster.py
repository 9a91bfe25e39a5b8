"""The PostgreSQL cluster that is backed up: in a temporary folder, run as an unprivileged user."""

import contextlib
import glob
import os
import subprocess
import time

from measure import as_user

# The source's speed is not what is measured. Segments are kept so that each contender can archive the same ones.
SETTINGS = """
listen_addresses = ''
wal_level = replica
archive_mode = on
archive_command = 'true'
max_wal_size = 6GB
wal_keep_size = 4GB
checkpoint_timeout = 1h
shared_buffers = 256MB
fsync = off
autovacuum = off
log_line_prefix = '%n '
"""


class Cluster:
    def __init__(self, bin_folder, folder, user, port):
        self.bin = bin_folder
        self.folder = folder  # holds data, socket and log
        self.data = os.path.join(folder, "data")
        self.log = os.path.join(folder, "server.log")
        self.user = user
        self.port = port

    def command(self, name, *arguments):
        """Runs one of PostgreSQL's programs as the unprivileged user and returns what it printed."""
        command = [os.path.join(self.bin, name), *arguments]
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.folder, **as_user(self.user)
        )
        text = answer.stdout.decode(errors="replace")
        if answer.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{text[-4000:]}")
        return text

    def create(self):
        self.command("initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "--data-checksums", "--locale=C.UTF-8", "-N")

    def configure(self, settings=""):
        """Adds our settings; the last word on a setting counts, so a copy of another cluster may be told again."""
        with open(os.path.join(self.data, "postgresql.conf"), "a") as conf:
            conf.write(f"{SETTINGS}unix_socket_directories = '{self.folder}'\nport = {self.port}\n{settings}")

    def start(self, options=""):
        # The log is given because the server keeps its standard output, which must not be our pipe.
        self.command("pg_ctl", "-D", self.data, "-l", self.log, "-o", options, "-w", "-t", "600", "start")

    def stop(self):
        self.command("pg_ctl", "-D", self.data, "-m", "fast", "-w", "-t", "600", "stop")

    def running(self):
        return os.path.exists(os.path.join(self.data, "postmaster.pid"))

    def archiver(self):
        """The process that runs `archive_command`."""
        return int(self.sql("select pid from pg_stat_activity where backend_type = 'archiver'"))

    def address(self):
        return ["-h", self.folder, "-p", str(self.port), "-U", "postgres"]

    def sql(self, *statements):
        commands = [part for statement in statements for part in ("-c", statement)]
        return self.command("psql", *self.address(), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", *commands).strip()

    def archive_with(self, command, wait_s=0.5):
        """Sets `archive_command`; empty lets segments pile up as `.ready`."""
        quoted = command.replace("'", "''")
        self.sql(f"alter system set archive_command = '{quoted}'", "select pg_reload_conf()")
        time.sleep(wait_s)  # until the archiver has heard of it

    @contextlib.contextmanager
    def durably(self):
        """With fsync, as a server that somebody uses: what can be written in a time depends on it."""
        self.sql("alter system set fsync = on", "select pg_reload_conf()")
        yield
        self.sql("alter system reset fsync", "select pg_reload_conf()")

    def write_for(self, seconds):
        self.command("pgbench", *self.address(), "-n", "-c", "4", "-j", "1", "-T", str(seconds), "postgres")

    def settle(self):
        """Leaves nothing to archive and nothing to write, so that no contender pays for what came before its turn."""
        self.archive_with("true")
        self.wait_archived()
        self.sql("checkpoint")
        os.sync()

    def statuses(self, suffix):
        names = glob.glob(os.path.join(self.data, f"pg_wal/archive_status/*{suffix}"))
        return sorted(os.path.basename(name)[: -len(suffix)] for name in names)

    def set_statuses(self, segments, suffix):
        """Marks segments as `.ready` or `.done`, whatever they were. Archiving must be off."""
        for segment in segments:
            stem = os.path.join(self.data, "pg_wal/archive_status", segment)
            other = ".done" if suffix == ".ready" else ".ready"
            if os.path.exists(stem + other):
                os.rename(stem + other, stem + suffix)

    def segment(self, name):
        return os.path.join(self.data, "pg_wal", name)

    def wait_archived(self, seconds=300):
        """Switches the segment and waits until nothing waits for archiving."""
        self.sql("select pg_switch_wal()")
        end = time.monotonic() + seconds
        while self.statuses(".ready"):
            if time.monotonic() > end:
                raise RuntimeError(f"not archived after {seconds} s: {self.statuses('.ready')[0]}")
            time.sleep(0.2)

    def digest(self):
        """What a restored copy must have in common with this cluster."""
        return self.sql(
            "select count(*), sum(abalance), sum(bid) from pgbench_accounts",
            "select count(*), sum(delta) from pgbench_history",
            "select count(*), sum(hashtext(body::text)::bigint), sum(hashtext(note)::bigint) from documents",
            "select count(*), sum(relpages) from pg_class",
        )
