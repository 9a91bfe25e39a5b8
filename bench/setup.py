"""What every contender is given: the folder, the cluster, the user, and the settings that all of them share."""

import itertools
import json
import os
import pwd
import shutil
import time

import measure
from cluster import Cluster

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAMS = ("pgkeep", "limit", "delay")
BIN = os.environ.get("PGKEEP_PG_BIN_15", "/usr/lib/postgresql/15/bin")
GIB = 1 << 30


def arguments_of_programs(parser):
    """The options that name our own programs."""
    release = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")
    for name in PROGRAMS:
        parser.add_argument(f"--{name}-program", default=os.path.join(release, name), help="the program to measure")


class Setup:
    def __init__(self, arguments, folder):
        self.folder = folder
        self.user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self.processes, self.cold = arguments.processes, arguments.cold
        self.programs = {name: getattr(arguments, f"{name}_program") for name in PROGRAMS}
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": folder, "LANG": "C.UTF-8"}
        self.many_files, self.discarded = False, 0
        self.server = None  # the S3 server, when a contender wants it
        self.give(folder)
        self.cluster = Cluster(BIN, self.fresh_folder(os.path.join(folder, "source")), self.user, 54329)

    def give(self, path):
        if self.user:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def fresh_folder(self, path):
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path, 0o700)
        self.give(path)
        return path

    def discard(self, path):
        """Removes what is not needed any more; where that is many files, only at the end: see `wait_for_inodes`."""
        if not os.path.exists(path):
            return
        if self.many_files:
            os.rename(path, os.path.join(self.fresh_folder(os.path.join(self.folder, f"discarded-{self.discarded}")), "it"))
            self.discarded += 1
        else:
            shutil.rmtree(path)

    def wait_for_inodes(self, seconds=400):
        """Waits until files are made quickly.

        ext4 does not use the inode of a file that was removed within the last minutes, and looks at each of them whenever a
        file is made: after 10,000 files were removed, a restore of 10,000 takes ten times its time, whoever does it.
        """
        end = time.monotonic() + seconds
        for attempt in itertools.count():
            folder = self.fresh_folder(os.path.join(self.folder, f"probe-{attempt}"))
            began = time.monotonic()
            for name in range(500):
                open(os.path.join(folder, str(name)), "w").close()
            if time.monotonic() - began < 0.05 or time.monotonic() > end:
                return
            time.sleep(10)

    def write(self, path, text):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        self.give(path)

    def program(self, name):
        """A copy of one of our programs, where the unprivileged user can run it."""
        copy = os.path.join(self.folder, f"{name}-program")
        if not os.path.exists(copy):
            shutil.copy(self.programs[name], copy)
            os.chmod(copy, 0o755)
        return copy

    def measure(self, command, environment=None, sync=True):
        if sync:
            os.sync()  # what was written before is not this command's work
        if self.cold:
            with open("/proc/sys/vm/drop_caches", "w") as caches:
                caches.write("3")
        return measure.run(command, self.user, {**self.environment, **(environment or {})}, self.folder)

    def call(self, command, environment=None):
        return measure.run(command, self.user, {**self.environment, **(environment or {})}, self.folder)["output"]


class NoSpace(Exception):
    """The disk is too small for what was asked."""


def need_space(folder, bytes_, what):
    free = shutil.disk_usage(folder).free
    if free < bytes_:
        raise NoSpace(f"{what} needs about {bytes_ / GIB:.0f} GiB below {folder}, and {free / GIB:.0f} GiB are free")


def take_cluster(setup, kept, data_set):
    """Brings the data set into the setup's cluster: from the folder where it is kept, or made, and then kept there."""
    cluster = setup.cluster
    setup.many_files = data_set.name == "many"
    marker = os.path.join(kept, "bench.json") if kept else None
    if marker and os.path.exists(marker):
        with open(marker) as file:
            found = json.load(file)
        if found != data_set.describe():
            raise SystemExit(f"{kept} holds {found}, not {data_set.describe()}")
        need_space(setup.folder, data_set.bytes_needed, str(found))
        copy_data(os.path.join(kept, "data"), cluster.data)
        cluster.configure(data_set.settings)
        cluster.start()
        return
    need_space(setup.folder, data_set.bytes_needed * (2 if kept else 1), str(data_set.describe()))
    cluster.create()
    cluster.configure(data_set.settings)
    cluster.start()
    data_set.fill(cluster)
    if kept:
        cluster.stop()
        os.makedirs(kept, exist_ok=True)
        copy_data(cluster.data, os.path.join(kept, "data"))
        with open(marker, "w") as file:
            json.dump(data_set.describe(), file)
        cluster.start()


def copy_data(source, target):
    """Copies a stopped cluster, owner and modes included."""
    measure.run(["cp", "-a", "--reflink=auto", source, target])
