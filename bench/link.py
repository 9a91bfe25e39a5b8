"""`bench/receive --link`: backups over SQL and received WAL on a link of 1 Gbit/s and 20 ms, beside what the socket allows.

The server is here and the programs with `@link` are on the other host, which keeps the repository in a folder.
"""

import os
import time

import load
import measure
from datasets import DATA_SETS
from namespace import SERVER, Link
from receivers import receiver
from receiving import Receiving
from session import Session
from setup import take_cluster
from tools.pg_basebackup import PgBaseBackup
from tools.pgkeep import PgKeep

SETTINGS = f"listen_addresses = '{SERVER}'\nmax_wal_senders = 20\n"
BACKUPS = ("pgkeep:local", "pgkeep:sql", "pg_basebackup", "pgkeep:sql@link", "pg_basebackup@link")
DATA = {"main": 60, "many": 200}  # with the usual scale
RECEIVERS = ("pgkeep", "pg_receivewal", "pgkeep@link", "pg_receivewal@link")


class Backup:
    """One contender of the backups: a tool, how it reads the files, and where it runs."""

    def __init__(self, setup, label, link):
        name, _, place = label.partition("@")
        name, _, self.mode = name.partition(":")
        kind = {"pgkeep": PgKeep, "pg_basebackup": PgBaseBackup}[name]
        self.setup, self.label = setup, label
        self.tool = kind(setup, f"link-{label}", kind.level, "folder")
        self.prefix = link.inside() if place else []
        self.tool.host = SERVER if place else setup.cluster.folder

    def measure(self):
        """A full backup into a new repository."""
        self.tool.prepare()
        self.setup.cluster.archive_with(self.tool.archive_command())
        command = [*self.prefix, *self.command()]
        os.sync()
        user = None if self.prefix else self.setup.user
        figures = measure.run(command, user, self.setup.environment, self.setup.folder)
        figures.pop("output")
        figures["stored_bytes"] = measure.folder_bytes(self.tool.repository)
        self.setup.cluster.archive_with("true")
        self.setup.discard(self.tool.folder)
        return figures

    def command(self):
        return [*self.tool.backup(full=True), *(["--mode", self.mode] if self.mode else [])]


def run(arguments, setup, facts, record_into):
    if setup.user is None:
        raise measure.Failed("--link makes network namespaces, which only root may")
    with Link(setup.user) as link:
        data_set = DATA_SETS[arguments.data][0](arguments.scale or DATA[arguments.data])
        data_set.settings += SETTINGS
        take_cluster(setup, None, data_set)
        allow_link(setup.cluster)
        known = {**facts(arguments, setup), "link": {"kind": link.kind, **link.measured}}
        known["settings"].update(data_set.describe())
        result, began = {"facts": known, "samples": []}, time.monotonic()
        backups = [Backup(setup, label, link) for label in BACKUPS]
        for number in range(1, arguments.rounds + 1):
            record = record_into(result, number, began)
            for backup in backups:
                setup.cluster.settle()
                record(backup.label, "backup", backup.measure())
            if arguments.data == "main":  # the documents are what is loaded to make WAL
                receive(arguments, setup, link, record)
    return result


def allow_link(cluster):
    with open(os.path.join(cluster.data, "pg_hba.conf"), "a") as hba:
        hba.write(f"host all all {SERVER}/30 trust\nhost replication all {SERVER}/30 trust\n")
    cluster.sql("select pg_reload_conf()", "create table bulk (like documents)", "create table recorded (at timestamptz)")
    cluster.sql(f"copy (select * from documents limit 40000) to '{cluster.folder}/documents'")


def receive(arguments, setup, link, record):
    """Each receiver drains the same WAL, through the socket or over the link."""
    receivers = []
    for label in RECEIVERS:
        name, _, place = label.partition("@")
        one = receiver(setup, name)
        if place:
            one.place(label, SERVER, link.inside())
        receivers.append((label, one))
    Receiving(setup, arguments, record).catch_up(receivers)
