"""The PostgreSQL cluster that is backed up: made once in a temporary folder, run as an unprivileged user."""

import glob
import os
import subprocess
import time

from measure import as_user

# A vocabulary of 200 made-up words, the same every time.
WORDS = [a + b + c for a in ("ser", "mol", "tan", "vi", "ka") for b in ("do", "ri", "ne", "lu") for c in ("", "n", "st", "va", "mi", "ro", "th", "ck", "les", "ng")]

# Rows that compress as application data does: repeated keys, words from a small vocabulary, digits nobody can guess.
# About 1 kB each.
DOCUMENTS = """
create table documents (id bigint primary key, made timestamptz not null, body jsonb not null, note text not null);
create function pg_temp.sentence(seed bigint, length int) returns text language sql as $$
    select string_agg(('{words}'::text[])[1 + (hashint8(seed * 1000 + i) & 1048575) % 200], ' ')
    from generate_series(1, length) i $$;
insert into documents
    select id, timestamptz '2026-01-01' + id * interval '7 seconds',
        jsonb_build_object('order', id, 'customer', hashint8(id) & 65535, 'email', md5(id::text) || '@example.org',
            'status', (array['new', 'paid', 'sent', 'back'])[1 + id % 4], 'total', (hashint8(id * 3) & 65535) / 100.0,
            'token', md5(id::text || 'a') || md5(id::text || 'b') || md5(id::text || 'c'),
            'lines', jsonb_build_array(pg_temp.sentence(id, 12), pg_temp.sentence(id * 7, 12))),
        pg_temp.sentence(id * 13, 60)
    from generate_series(1, {rows}) id;
create index on documents (made);
""".replace("{words}", "{" + ",".join(WORDS) + "}")


class Cluster:
    def __init__(self, bin_folder, folder, user, port):
        self.bin = bin_folder
        self.folder = folder  # holds data, socket and log
        self.data = os.path.join(folder, "data")
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
        with open(os.path.join(self.data, "postgresql.conf"), "a") as conf:
            conf.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\nport = {self.port}\n"
                "wal_level = replica\narchive_mode = on\narchive_command = ''\nmax_wal_size = 16GB\ncheckpoint_timeout = 1h\n"
                "shared_buffers = 256MB\nfsync = off\nautovacuum = off\n"  # the source's speed is not what is measured
            )

    def fill(self, scale):
        self.command("pgbench", *self.address(), "-i", "-q", "-s", str(scale), "postgres")
        self.sql(DOCUMENTS.replace("{rows}", str(scale * 2500)))
        self.sql("vacuum freeze analyze", "checkpoint")

    def start(self, options=""):
        # The log is given because the server keeps its standard output, which must not be our pipe.
        log = os.path.join(self.folder, "server.log")
        self.command("pg_ctl", "-D", self.data, "-l", log, "-o", options, "-w", "-t", "600", "start")

    def stop(self):
        self.command("pg_ctl", "-D", self.data, "-m", "fast", "-w", "-t", "600", "stop")

    def address(self):
        return ["-h", self.folder, "-p", str(self.port), "-U", "postgres"]

    def sql(self, *statements):
        commands = [part for statement in statements for part in ("-c", statement)]
        return self.command("psql", *self.address(), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", *commands).strip()

    def archive_with(self, command):
        """Sets `archive_command`; empty lets segments pile up as `.ready`."""
        quoted = command.replace("'", "''")
        self.sql(f"alter system set archive_command = '{quoted}'", "select pg_reload_conf()")
        time.sleep(0.5)

    def write_for(self, seconds):
        self.command("pgbench", *self.address(), "-n", "-c", "4", "-j", "1", "-T", str(seconds), "postgres")

    def ready(self):
        """Paths of the segments that wait for archiving."""
        names = glob.glob(os.path.join(self.data, "pg_wal/archive_status/*.ready"))
        return sorted(os.path.join(self.data, "pg_wal", os.path.basename(name)[: -len(".ready")]) for name in names)

    def wait_archived(self, seconds=300):
        """Switches the segment and waits until nothing waits for archiving."""
        self.sql("select pg_switch_wal()")
        end = time.monotonic() + seconds
        while self.ready():
            if time.monotonic() > end:
                raise RuntimeError(f"not archived after {seconds} s: {self.ready()[0]}")
            time.sleep(0.2)

    def one_full_segment(self):
        """Writes until exactly one segment full of ordinary records waits, and returns its path. Archiving must be off."""
        assert not self.ready(), "segments left over from before"
        while not self.ready():
            self.command("pgbench", *self.address(), "-n", "-c", "1", "-t", "50", "postgres")
        return self.ready()[0]

    def digest(self):
        """What a restored copy must have in common with this cluster."""
        return self.sql(
            "select count(*), sum(abalance), sum(bid) from pgbench_accounts",
            "select count(*), sum(delta) from pgbench_history",
            "select count(*), sum(hashtext(body::text)::bigint), sum(hashtext(note)::bigint) from documents",
        )
