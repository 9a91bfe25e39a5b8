"""Who receives WAL: `pgkeep`, `pgkeep@s3`, and pg_receivewal plain, compressing or synchronous. Each has a slot of its own."""

import os
import re
import signal
import subprocess
import threading
import time

import measure
from measure import as_user
from tools.pgkeep import PgKeep

SEGMENT = 16 << 20
LABELS = ("nobody", "pgkeep", "pgkeep@s3", "pg_receivewal", "pg_receivewal:lz4", "pg_receivewal:gzip", "pg_receivewal:synchronous")
CATCH_UP_S = 600


class Receiver:
    """A program that receives in the name of its own slot."""

    def __init__(self, setup, label):
        self.setup, self.cluster, self.process = setup, setup.cluster, None
        self.place(label, setup.cluster.folder, [])

    def place(self, label, host, prefix):
        """Has it reach the server at `host`, and run behind `prefix`, which may be on another host."""
        self.label, self.host, self.prefix = label, host, prefix
        self.slot = re.sub("[^a-z0-9]", "_", label)

    def prepare(self):
        """A new and empty target, and a slot that keeps WAL from the last checkpoint on."""
        self.make_target()
        self.drop_slot()
        self.cluster.sql(f"select pg_create_physical_replication_slot('{self.slot}', true)")

    def drop_slot(self):
        # The server takes a moment to notice that a receiver is gone.
        for _ in range(100):
            if self.cluster.sql(f"select active from pg_replication_slots where slot_name = '{self.slot}'") != "t":
                break
            time.sleep(0.1)
        self.cluster.sql(f"select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{self.slot}'")

    def start(self, max_lag="1s"):
        self.log = os.path.join(self.setup.folder, f"{self.slot}.log")
        user = {} if self.prefix else as_user(self.setup.user)
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self.command(max_lag)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.setup.folder, env=self.setup.environment, **user,
            )  # fmt: skip
        self.peak, self.stopping = {"rss": 0, "anonymous": 0}, threading.Event()
        self.sampler = threading.Thread(target=measure.sample, args=(self.process.pid, self.peak, self.stopping), daemon=True)
        self.sampler.start()

    def wait_stored(self, session, end, seconds=CATCH_UP_S):
        """Waits until everything before `end` is stored, and returns the moment at which that was seen."""
        until = time.monotonic() + seconds
        while self.stored(session) < end:
            if self.process.poll() is not None or time.monotonic() > until:
                with open(self.log) as log:
                    raise measure.Failed(f"{self.label} did not store WAL up to {end:X}\n{log.read()[-2000:]}")
            time.sleep(0.02)
        return time.monotonic()

    def cpu_s(self):
        """CPU seconds of the receiver until now, and of the server's process that sends to it."""
        ticks = os.sysconf("SC_CLK_TCK")
        sender = self.cluster.sql(f"select active_pid from pg_replication_slots where slot_name = '{self.slot}'")
        return measure.cpu_ticks(self.process.pid)[0] / ticks, measure.cpu_ticks(sender)[0] / ticks if sender else 0

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        self.stopping.set()
        self.sampler.join()

    def reported(self, session):
        """What the server was told to be durable."""
        return session.number(f"select max(flush_lsn - '0/0') from pg_stat_replication where application_name = '{self.slot}'")


class Keep(Receiver):
    def __init__(self, setup, label):
        super().__init__(setup, label)
        self.store = label.partition("@")[2] or "folder"

    def make_target(self):
        self.tool = PgKeep(self.setup, f"receive-{self.label}", PgKeep.level, self.store)
        self.tool.host = self.host
        self.tool.prepare()

    def command(self, max_lag):
        return self.tool.command("wal", "receive", "--slot", self.slot, "--slot-limit", "0", "--max-lag", max_lag)

    def stored(self, session):
        return self.reported(session)

    def target_bytes(self):
        return measure.folder_bytes(self.tool.repository)


class Peer(Receiver):
    """pg_receivewal. It tells the server rarely which segments are whole, so its finished files are looked at."""

    suffixes = {"lz4": ".lz4", "gzip": ".gz"}

    def __init__(self, setup, label):
        super().__init__(setup, label)
        self.kind = label.partition(":")[2]

    def make_target(self):
        self.folder = os.path.join(self.setup.folder, self.slot)
        self.setup.fresh_folder(self.folder)

    def command(self, max_lag):
        extra = {"lz4": ["-Z", "lz4"], "gzip": ["-Z", "gzip:1"], "synchronous": ["--synchronous"]}.get(self.kind, [])
        address = f"host={self.host} port={self.cluster.port} user=postgres application_name={self.slot}"
        return [os.path.join(self.cluster.bin, "pg_receivewal"), "-d", address, "-D", self.folder, "-S", self.slot, "--no-loop", *extra]

    def stored(self, session):
        done = re.compile("([0-9A-F]{24})" + re.escape(self.suffixes.get(self.kind, "")))
        names = [match[1] for match in map(done.fullmatch, os.listdir(self.folder)) if match]
        reported = self.reported(session) if self.kind == "synchronous" else 0
        return max([reported, *map(end_of, names)])

    def target_bytes(self):
        return measure.folder_bytes(self.folder)


def end_of(segment):
    """The position after the last byte of a segment of 16 MiB."""
    return (int(segment[8:16], 16) << 32) + int(segment[16:], 16) * SEGMENT + SEGMENT


def receiver(setup, label):
    if label not in LABELS:
        raise SystemExit(f"no receiver {label}; there are {', '.join(LABELS)}")
    if label == "nobody":
        return None
    return Keep(setup, label) if label.startswith("pgkeep") else Peer(setup, label)
