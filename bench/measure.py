"""Runs a command and measures it: wall time, CPU of it and all its children, peak memory of the whole process tree."""

import os
import subprocess
import threading
import time

SAMPLE_S = 0.02


class Failed(Exception):
    """The command ended with another code than 0."""


def run(command, user=None, env=None, cwd=None):
    """Runs `command` as `user` (a pwd entry, or None for who we are) and returns its figures, or raises `Failed`.

    CPU is the rusage of the child and of every descendant it waited for. Memory is sampled over the process tree, so a peak
    shorter than a sample is missed there; `largest_process_bytes` is the kernel's own figure for the largest single process.
    """
    started = time.monotonic()
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=cwd, **as_user(user)
    )
    output = []
    reader = threading.Thread(target=lambda: output.append(child.stdout.read()), daemon=True)
    reader.start()
    peak = {"rss": 0, "anonymous": 0}
    stop = threading.Event()
    sampler = threading.Thread(target=sample, args=(child.pid, peak, stop), daemon=True)
    sampler.start()
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        child.kill()  # we are being ended: it must not outlive its folder
        raise
    wall = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    stop.set()
    sampler.join()
    reader.join(timeout=5)  # a child left in the background may hold the pipe: its output is not worth waiting for
    text = b"".join(output).decode(errors="replace")
    if child.returncode != 0:
        raise Failed(f"{' '.join(command)}: exit code {child.returncode}\n{text[-4000:]}")
    return {
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": max(peak["rss"], usage.ru_maxrss * 1024),
        "peak_anonymous_bytes": peak["anonymous"],
        "largest_process_bytes": usage.ru_maxrss * 1024,
        "output": text,
    }


class Watch:
    """Memory and CPU of processes by their names, for what a server starts and what leaves its process tree.

    CPU is that of the children that `parent` waited for, and of what was seen of those that nobody there waits for. It is
    sampled: the last moments of a process that went away are missing.
    """

    def __init__(self, names, parent=None):
        self.names, self.parent = set(names), parent
        self.stop, self.peak, self.seen, self.others = threading.Event(), 0, {}, {}
        self.before = sum(cpu_ticks(parent)[2:]) if parent else 0
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()

    def sample(self):
        while not self.stop.wait(SAMPLE_S):
            anonymous = 0
            for pid in os.listdir("/proc"):
                if not pid.isdigit() or self.others.get(pid, 0) > 20:
                    continue  # whoever was somebody else for so long will not become one of ours
                try:
                    with open(f"/proc/{pid}/comm") as comm:
                        ours = comm.read().strip() in self.names
                    ticks = cpu_ticks(pid) if ours else None
                except OSError:
                    continue
                if ours:
                    anonymous += memory(pid).get("RssAnon", 0)
                    self.seen[pid] = ticks
                else:
                    self.others[pid] = self.others.get(pid, 0) + 1
            self.peak = max(self.peak, anonymous)

    def figures(self):
        self.stop.set()
        self.thread.join()
        found = {"peak_anonymous_bytes": self.peak}
        if self.parent:
            alone = sum(own + user + system for own, ppid, user, system in self.seen.values() if ppid == 1)
            waited = sum(cpu_ticks(self.parent)[2:]) - self.before
            found["cpu_s"] = (alone + waited) / os.sysconf("SC_CLK_TCK")
        return found


def cpu_ticks(pid):
    """(own ticks, parent, ticks of waited-for children in user mode, and in the kernel)"""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]), int(fields[1]), int(fields[13]), int(fields[14])


def as_user(user):
    """The arguments of `Popen` that make the child somebody else's; nothing when we are that user already."""
    if user is None or user.pw_uid == os.geteuid():
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def sample(root, peak, stop):
    """Adds up resident and anonymous memory over the process tree of `root` until `stop`, and keeps the largest sums."""
    while not stop.wait(SAMPLE_S):
        rss = anonymous = 0
        for pid in process_tree(root):
            sizes = memory(pid)
            rss += sizes.get("VmRSS", 0)
            anonymous += sizes.get("RssAnon", 0)
        peak["rss"] = max(peak["rss"], rss)
        peak["anonymous"] = max(peak["anonymous"], anonymous)


def process_tree(root):
    pending, found = [root], []
    while pending:
        pid = pending.pop()
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as children:
                    pending.extend(int(child) for child in children.read().split())
        except OSError:
            pass  # it ended meanwhile
    return found


def memory(pid):
    """`VmRSS` and `RssAnon` of a process in bytes; nothing when it is gone."""
    sizes = {}
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                name, _, value = line.partition(":")
                if name in ("VmRSS", "RssAnon"):
                    sizes[name] = int(value.split()[0]) * 1024
    except OSError:
        pass
    return sizes


def folder_bytes(folder):
    """The sum of the sizes of all files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                pass
    return total
