"""Who is measured: `name[:level][@s3]`, as in `pgkeep`, `pgkeep:3`, `pgbackrest@s3`, `limit:3`."""

import re
import sys

from tools.cp import Cp
from tools.limit import Limit
from tools.pg_basebackup import PgBaseBackup
from tools.pgbackrest import PgBackRest
from tools.pgkeep import PgKeep, PgKeepSql
from tools.restic import Restic

TOOLS = {tool.name: tool for tool in (PgKeep, PgKeepSql, PgBackRest, PgBaseBackup, Restic, Limit, Cp)}
USUAL = {
    "main": ["pgkeep", "pgkeep:3", "pgbackrest", "limit", "limit:3", "cp"],
    "many": ["pgkeep", "pgbackrest", "limit"],
    "large": ["pgkeep", "limit"],
}
# Phase, as it is asked for and as it is printed.
PHASES = {
    "full": "full",
    "unchanged": "incremental, nothing changed",
    "pgbench": "incremental, after pgbench",
    "append": "incremental, 100 MB appended",
    "restore": "restore",
    "delta": "delta restore, intact",
    "delta-changed": "delta restore, changed",
    "check": "check",
    "verify": "verify",
    "push": "WAL push of one segment",
    "drain": "WAL drain, asynchronous",
    "replay": "replay, asynchronous get",
    "replay-one": "replay, one get at a time",
}
USUAL_PHASES = {
    "main": list(PHASES),
    "many": ["full", "unchanged", "restore", "delta"],
    "large": ["full", "unchanged", "pgbench", "restore"],
}


class Contender:
    """A tool at a level on a store, and the phases in which it takes part."""

    def __init__(self, setup, label, phases):
        name, level, store = parse(label)
        kind = TOOLS[name]
        self.label = label
        self.reason = kind.missing(setup)
        if store not in kind.stores:
            self.reason = f"it has no adapter for {store}"
        self.phases = [phase for phase in phases if phase in kind.phases]
        if level is not None and level != kind.level:
            # A further level is about compressing: whole backups show that.
            self.phases = [phase for phase in self.phases if phase == "full"]
        if store == "s3":
            self.phases = [phase for phase in self.phases if phase not in ("replay", "replay-one")]
        if not self.reason:
            self.tool = kind(setup, label, kind.level if level is None else level, store)


def parse(label):
    match = re.fullmatch(r"([a-z_]+)(?::(-?\d+))?(?:@(folder|s3))?", label)
    if not match or match[1] not in TOOLS:
        raise SystemExit(f"{label}: write name[:level][@s3], with one of these names: {', '.join(TOOLS)}")
    return match[1], int(match[2]) if match[2] else None, match[3] or "folder"


def choose(setup, labels, phases):
    """The contenders that can be measured here and take part in one of the phases; says which cannot."""
    chosen = []
    for contender in (Contender(setup, label, phases) for label in labels):
        if contender.reason:
            print(f"WITHOUT {contender.label}: {contender.reason}", file=sys.stderr)
        elif contender.phases:
            chosen.append(contender)
    return chosen or sys.exit("nothing to measure")
