"""The phases of WAL: pushing one segment, draining many, and replaying them. All contenders are given the same segments."""

import os
import re
import time

from cluster import Cluster
from measure import Failed, Watch, folder_bytes
from setup import BIN, copy_data

PUSHES = 8
DEADLINE_S = 600


def run(round_):
    if not any(round_.taking(phase) for phase in ("push", "drain", "replay", "replay-one")):
        return
    cluster, setup, count = round_.setup.cluster, round_.setup, round_.arguments.segments
    base = setup.fresh_folder(os.path.join(setup.folder, "base"))
    cluster.settle()
    cluster.command("pg_basebackup", *cluster.address(), "-D", os.path.join(base, "data"), "-X", "none", "-c", "fast")
    first = first_segment(os.path.join(base, "data"))
    cluster.archive_with("")
    segments = write_segments(cluster, first, count + PUSHES)
    drained, pushed = segments[:count], segments[count : count + PUSHES]
    cluster.set_statuses(segments, ".done")
    for contender in round_.taking("push"):
        push(round_, contender, pushed)
    for contender in round_.taking("drain"):
        drain(round_, contender, drained)
    for phase in ("replay", "replay-one"):
        for contender in round_.taking(phase):
            replay(round_, contender, base, phase, count)
    setup.discard(base)


def first_segment(data):
    with open(os.path.join(data, "backup_label")) as label:
        return re.search(r"\(file ([0-9A-F]{24})\)", label.read())[1]


def write_segments(cluster, first, count):
    """Has pgbench write until so many whole segments from `first` on are there. Archiving must be off."""
    while True:
        there = [name for name in cluster.statuses(".ready") + cluster.statuses(".done") if re.fullmatch("[0-9A-F]{24}", name)]
        segments = sorted(name for name in there if name >= first)
        if len(segments) >= count:
            return segments
        cluster.sql("checkpoint")  # each page is in the log whole again: segments fill fast, and as they do after a checkpoint
        cluster.write_for(4 if count - len(segments) > 16 else 1)


def push(round_, contender, segments):
    """Each segment by a process of its own, while no other waits, as a quiet server does it."""
    cluster, tool = round_.setup.cluster, contender.tool
    os.sync()
    for segment in segments:
        cluster.set_statuses([segment], ".ready")
        round_.measured(contender, "push", tool.push(cluster.segment(segment)), sync=False)
        cluster.set_statuses([segment], ".done")


def drain(round_, contender, segments):
    """From archiving switched on, with all the segments waiting, until the server counts them all as archived."""
    cluster, tool = round_.setup.cluster, contender.tool
    cluster.set_statuses(segments, ".ready")
    os.sync()
    server = round_.setup.server
    if server:
        server.reset()
    before = folder_bytes(tool.repository)
    watch = Watch(tool.processes, cluster.archiver())
    began = time.monotonic()
    cluster.archive_with(tool.archive_command(asynchronous=True), wait_s=0)
    while cluster.statuses(".ready"):
        if time.monotonic() > began + DEADLINE_S:
            raise Failed(f"{contender.label}: not drained after {DEADLINE_S} s")
        time.sleep(0.01)
    wall = time.monotonic() - began
    cluster.archive_with("")
    figures = {"wall_s": wall, "segments_per_s": len(segments) / wall, **watch.figures()}
    figures["repository_bytes"] = folder_bytes(tool.repository) - before
    if server and tool.store == "s3":
        figures["requests"] = server.counts()
    round_.record(contender.label, "drain", figures)


def replay(round_, contender, base, phase, count):
    """Starts recovery on a copy of the base backup; the rate is from the first segment that came back to the last."""
    setup, tool = round_.setup, contender.tool
    folder = setup.fresh_folder(os.path.join(setup.folder, "restored"))
    copy = Cluster(BIN, folder, setup.user, setup.cluster.port + 1)
    command = tool.restore_command(copy.data, asynchronous=phase == "replay")
    copy_data(os.path.join(base, "data"), copy.data)
    quoted = command.replace("'", "''")
    setup.write(os.path.join(copy.data, "postgresql.auto.conf"), f"restore_command = '{quoted}'\n")
    setup.write(os.path.join(copy.data, "recovery.signal"), "")
    os.sync()
    watch = Watch(tool.processes)
    copy.start(f"-p {copy.port} -k {folder} -c archive_mode=off -c fsync=on")
    end = time.monotonic() + DEADLINE_S
    while copy.sql("select pg_is_in_recovery()") == "t":
        if time.monotonic() > end:
            raise Failed(f"{contender.label}: recovery did not end in {DEADLINE_S} s")
        time.sleep(0.1)
    figures = watch.figures()
    copy.stop()
    times = restored_times(copy.log)
    setup.discard(folder)
    if len(times) < count:
        raise Failed(f"{contender.label}: {len(times)} segments were replayed, not {count}")
    wall = times[-1] - times[0]
    round_.record(contender.label, phase, {"wall_s": wall, "segments_per_s": (len(times) - 1) / wall, **figures})


def restored_times(log):
    """When each segment came back; the last is fetched once more when recovery ends."""
    with open(log, errors="replace") as file:
        found = re.findall(r'^([0-9.]+) .*restored log file "([0-9A-F]{24})" from archive', file.read(), re.MULTILINE)
    times = {}
    for when, name in found:
        times.setdefault(name, float(when))
    return sorted(times.values())
