"""What writes WAL: as fast as the machine can, or steadily with a record of every commit."""

import bisect
import glob
import os
import shutil
import subprocess
import threading
import time

from datasets import DOCUMENTS, TABLE, two_at_once
from measure import as_user
from session import Session

SETTINGS = """
archive_mode = off
wal_keep_size = 0
max_wal_size = 8GB
max_slot_wal_keep_size = -1
wal_sender_timeout = 60s
"""
SCALE = 20  # of pgbench's tables: more of them would be read from disk
SEGMENT = 16 << 20


def fill(cluster, megabytes):
    """pgbench's tables, and so many megabytes of documents as a table and as a file to copy from."""
    cluster.command("pgbench", *cluster.address(), "-i", "-q", "-s", str(SCALE), "postgres")
    cluster.sql(TABLE.format(table="documents", options=""))
    rows = megabytes * 1_000_000 // 1170
    parts = [DOCUMENTS.replace("{table}", "documents").replace("{first}", str(first)).replace("{last}", str(last))
             for first, last in ((1, rows // 2), (rows // 2 + 1, rows))]  # fmt: skip
    two_at_once(cluster, parts)
    cluster.sql(
        "vacuum freeze analyze", f"copy documents to '{cluster.folder}/documents'", "create table bulk (like documents)",
        "create table recorded (at timestamptz default clock_timestamp())", "checkpoint",
    )  # fmt: skip


def bulk_statements(cluster):
    """The three ways in which rows come in bulk. Each begins with an empty table, so that the disk does not fill."""
    return [
        "drop table if exists made; create table made as select * from documents",
        "truncate bulk; insert into bulk select * from documents",
        f"truncate bulk; copy bulk from '{cluster.folder}/documents'",
    ]


def pgbench(cluster, seconds, *options):
    command = [os.path.join(cluster.bin, "pgbench"), *cluster.address(), "-n", "-T", str(seconds), *options, "postgres"]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cluster.folder, **as_user(cluster.user)
    )


def finish(process):
    output, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"pgbench: exit code {process.returncode}\n{output[-2000:]}")
    return output


def position(session):
    return session.number("select pg_current_wal_insert_lsn() - '0/0'")


def switch(session):
    """Ends the segment in hand and returns where the next one begins, which a receiver can have in full."""
    end = session.number("select pg_switch_wal() - '0/0'")
    return -(-end // SEGMENT) * SEGMENT


def write_fast(cluster, seconds):
    """Four clients of pgbench and a session that loads in bulk, until the time is over; a bulk load is not broken off."""
    end = time.monotonic() + seconds
    clients = pgbench(cluster, seconds, "-c", "4", "-j", "1")
    with Session(cluster) as session:
        while time.monotonic() < end:
            for statement in bulk_statements(cluster):
                if time.monotonic() < end:
                    session.ask(statement)
    finish(clients)


def write_bytes(cluster, wanted):
    """Bulk loads until so many bytes of WAL were written."""
    with Session(cluster) as session:
        began = position(session)
        while position(session) - began < wanted:
            for statement in bulk_statements(cluster):
                session.ask(statement)


class Recorder:
    """A client that commits all the time, and knows for each commit its position and when it was answered."""

    pause_s = 0.005

    def __init__(self, cluster):
        self.cluster, self.stopping = cluster, threading.Event()
        self.positions, self.times = [], []
        self.thread = threading.Thread(target=self.write, daemon=True)
        self.thread.start()

    def write(self):
        with Session(self.cluster) as session:
            while not self.stopping.wait(self.pause_s):
                # The commit is before this position, so its age is never taken for less than it is.
                at = session.number("insert into recorded default values; select pg_current_wal_insert_lsn() - '0/0'")
                self.times.append(time.monotonic())
                self.positions.append(at)

    def age(self, stored, now):
        """The age of the newest commit that is stored; `None` before there is one."""
        number = bisect.bisect_right(self.positions, stored)
        return now - self.times[number - 1] if number else None

    def stop(self):
        self.stopping.set()
        self.thread.join()


def commit_latencies(cluster, seconds, clients):
    """Milliseconds of each transaction of `pgbench -N`."""
    folder = os.path.join(cluster.folder, "latencies")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, 0o777)
    os.chmod(folder, 0o777)
    finish(pgbench(cluster, seconds, "-N", "-c", str(clients), "-j", "1", "-l", f"--log-prefix={folder}/log"))
    found = []
    for name in glob.glob(f"{folder}/log*"):
        with open(name) as log:
            found.extend(int(line.split()[2]) / 1000 for line in log)
    return found
