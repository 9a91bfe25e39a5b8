"""The phases of `bench/receive`: each has its turns one after the other, a new target and a new slot for every turn."""

import os
import statistics
import time

import load
from session import Session

SAMPLE_S = 0.05
WARM_UP_S = 2
# After the last write the server notes the running transactions once more, 15 s after the last time at the earliest, which
# it looks at every 10 s while it has nothing to do. Source: `LOG_SNAPSHOT_INTERVAL_MS` and `HIBERNATE_FACTOR`, `bgwriter.c`.
QUIET_S = 26


class Receiving:
    def __init__(self, setup, arguments, record):
        self.setup, self.cluster, self.arguments, self.record = setup, setup.cluster, arguments, record

    def run_round(self, number, receivers):
        """`receivers` are (label, receiver), where nobody's is None; by phase."""
        for phase in self.arguments.phases:
            measure = {"throughput": self.throughput, "lag": self.lag, "commit": self.commit}
            if phase == "catch-up":
                self.catch_up(receivers[phase])
                continue
            for label, receiver in receivers[phase]:
                self.settle()
                try:
                    measure[phase](label, receiver, number)
                finally:
                    self.leave(receiver)

    def settle(self):
        """Nothing is left to write, so that nobody pays for what came before; WAL that no slot keeps is recycled."""
        self.cluster.sql("truncate bulk, recorded, pgbench_history", "drop table if exists made", "checkpoint")
        os.sync()

    def leave(self, receiver):
        self.cluster.sql("alter system reset synchronous_standby_names", "select pg_reload_conf()")
        if receiver:
            receiver.stop()
            receiver.drop_slot()

    def begin(self, receiver, session, max_lag="1s"):
        """Starts a receiver, and waits until it has everything."""
        if receiver:
            receiver.prepare()
            receiver.start(max_lag)
            receiver.wait_stored(session, load.switch(session))

    def throughput(self, label, receiver, number):
        with Session(self.cluster) as session:
            self.begin(receiver, session)
            cpu = receiver.cpu_s() if receiver else None
            start, began = load.position(session), time.monotonic()
            load.write_fast(self.cluster, self.arguments.seconds)
            written, ended = load.position(session) - start, time.monotonic()
            figures = {"written_bytes_per_s": written / (ended - began)}
            if receiver:
                behind = max(0, start + written - receiver.stored(session))
                end = load.switch(session)
                stored = receiver.wait_stored(session, end)
                figures.update(
                    received_bytes_per_s=(end - start) / (stored - began), behind_bytes=behind, behind_s=stored - ended,
                    **self.cost(receiver, cpu, end - start),
                )  # fmt: skip
        self.record(label, "throughput", figures)

    def cost(self, receiver, before, received):
        receiver_s, sender_s = (now - then for now, then in zip(receiver.cpu_s(), before))
        gigabytes = received / 1e9
        return {
            "cpu_s": receiver_s, "sender_cpu_s": sender_s, "cpu_s_per_gb": receiver_s / gigabytes, "sender_cpu_s_per_gb": sender_s / gigabytes,
            "peak_anonymous_bytes": receiver.peak["anonymous"], "received_bytes": received, "stored_share": receiver.target_bytes() / received,
        }  # fmt: skip

    def catch_up(self, receivers):
        """Every slot keeps the same WAL, which was written before; then one receiver after the other drains its own."""
        receivers = [(label, receiver) for label, receiver in receivers if receiver]
        self.settle()
        try:
            for _, receiver in receivers:
                receiver.prepare()
            with Session(self.cluster) as session:
                start = load.position(session)
                load.write_bytes(self.cluster, self.arguments.megabytes * 1_000_000)
                end = load.switch(session)
                for label, receiver in receivers:
                    os.sync()
                    self.record(label, "catch-up", self.drain(receiver, session, start, end))
        finally:
            for _, receiver in receivers:
                self.leave(receiver)

    def drain(self, receiver, session, start, end):
        began = time.monotonic()
        receiver.start()
        wall = receiver.wait_stored(session, end) - began
        figures = {"wall_s": wall, "received_bytes_per_s": (end - start) / wall, **self.cost(receiver, (0, 0), end - start)}
        receiver.stop()
        return figures

    def lag(self, label, receiver, number):
        server, seconds = self.setup.server if label.endswith("@s3") else None, self.arguments.lag_seconds
        with self.cluster.durably(), Session(self.cluster) as session:
            self.begin(receiver, session)
            clients = load.pgbench(self.cluster, seconds + WARM_UP_S, "-R", str(self.arguments.rate), "-c", "4", "-j", "1")
            recorder = load.Recorder(self.cluster)
            time.sleep(WARM_UP_S)
            if server:
                server.reset()
            start, began = load.position(session), time.monotonic()
            ages = self.ages(receiver, recorder, session, began + seconds)
            took = time.monotonic() - began
            figures = {
                "median_s": statistics.median(ages), "p99_s": percentile(ages, 99), "max_s": max(ages), "samples": len(ages),
                "written_bytes_per_s": (load.position(session) - start) / took, "peak_anonymous_bytes": receiver.peak["anonymous"],
            }  # fmt: skip
            if server:
                figures["requests_per_s"] = {kind: count / took for kind, count in server.counts().items()}
            recorder.stop()
            load.finish(clients)
            if server and number == 1:
                figures["idle"] = self.idle(receiver, session, server)
        self.record(label, "lag", figures)

    def ages(self, receiver, recorder, session, until):
        """How old the newest stored commit is, again and again."""
        found = []
        while time.monotonic() < until:
            time.sleep(SAMPLE_S)
            stored = receiver.reported(session)
            age = recorder.age(stored, time.monotonic())
            if age is not None:
                found.append(age)
        return found

    def idle(self, receiver, session, server):
        """Requests of a receiver while the server writes nothing."""
        self.cluster.sql("checkpoint")
        end, last = time.monotonic() + QUIET_S, load.position(session)
        while time.monotonic() < end and load.position(session) == last:
            time.sleep(SAMPLE_S)
        time.sleep(WARM_UP_S)  # until that is stored
        start = load.position(session)
        server.reset()
        time.sleep(self.arguments.idle_seconds)
        return {"seconds": self.arguments.idle_seconds, "requests": server.counts(), "written_bytes": load.position(session) - start}

    def commit(self, label, receiver, number):
        with self.cluster.durably(), Session(self.cluster) as session:
            self.begin(receiver, session, max_lag=self.arguments.commit_max_lag)
            if receiver:
                self.cluster.sql(f"alter system set synchronous_standby_names = '{receiver.slot}'", "select pg_reload_conf()")
                self.wait_synchronous(session)
            for clients in (1, 8):
                self.record(label, f"commit-{clients}", self.commits(label, session, clients))
            # Before the receiver goes: whoever commits without it would wait for ever.
            self.cluster.sql("alter system reset synchronous_standby_names", "select pg_reload_conf()")

    def commits(self, label, session, clients):
        server, seconds = self.setup.server if label.endswith("@s3") else None, self.arguments.commit_seconds
        if server:
            server.reset()
        start = load.position(session)
        found = load.commit_latencies(self.cluster, seconds, clients)
        figures = {"median_ms": statistics.median(found), "p99_ms": percentile(found, 99), "per_s": len(found) / seconds}
        if server:
            # What was stored again and again, because many small parts are replaced by one, is sent again and again.
            figures["requests_per_s"] = {kind: count / seconds for kind, count in server.counts().items()}
            figures["sent_share"] = server.counts()["sent_bytes"] / (load.position(session) - start)
        return figures

    def wait_synchronous(self, session, seconds=30):
        end = time.monotonic() + seconds
        while not session.number("select count(*) from pg_stat_replication where sync_state = 'sync'"):
            if time.monotonic() > end:
                raise RuntimeError("the receiver does not become the synchronous standby")
            time.sleep(0.05)


def percentile(numbers, percent):
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
