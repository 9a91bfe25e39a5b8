"""The data sets: *main*, *many* (20,000 tables) and *large* (at least 25 GB)."""

import os
import subprocess

from measure import as_user

# A vocabulary of 200 made-up words, the same every time.
WORDS = [a + b + c for a in ("ser", "mol", "tan", "vi", "ka") for b in ("do", "ri", "ne", "lu") for c in ("", "n", "st", "va", "mi", "ro", "th", "ck", "les", "ng")]

# Rows that compress as application data does: repeated keys, words from a small vocabulary, digits nobody can guess.
# About 1 kB each.
SENTENCE = """
create function pg_temp.sentence(seed bigint, length int) returns text language sql as $$
    select string_agg(('{words}'::text[])[1 + (hashint8(seed * 1000 + i) & 1048575) % 200], ' ')
    from generate_series(1, length) i $$;
""".replace("{words}", "{" + ",".join(WORDS) + "}")
TABLE = "create table {table} (id bigint not null, made timestamptz not null, body jsonb not null, note text not null) {options};"
DOCUMENTS = SENTENCE + """
insert into {table}
    select id, timestamptz '2026-01-01' + id * interval '7 seconds',
        jsonb_build_object('order', id, 'customer', hashint8(id) & 65535, 'email', md5(id::text) || '@example.org',
            'status', (array['new', 'paid', 'sent', 'back'])[1 + id % 4], 'total', (hashint8(id * 3) & 65535) / 100.0,
            'token', md5(id::text || 'a') || md5(id::text || 'b') || md5(id::text || 'c'),
            'lines', jsonb_build_array(pg_temp.sentence(id, 12), pg_temp.sentence(id * 7, 12))),
        pg_temp.sentence(id * 13, 60)
    from generate_series({first}::bigint, {last}::bigint) id;
"""
BYTES_PER_ROW = 1170
MB = 1_000_000

# Each table has its heap, its primary key, its TOAST table and the index of that: four files.
MANY = """
do $$ begin
    for i in {first} .. {last} loop
        execute format('create table many_%s (id int primary key, made timestamptz default now(), note text)', i);
        execute format('insert into many_%s (id, note) select n, md5((n * %s)::text) || repeat(''note '', 8) || n '
            'from generate_series(1, 60) n', i, i);
    end loop;
end $$;
"""


class Main:
    name = "main"
    settings = ""
    accounts, documents = "-F 100", ""

    def __init__(self, scale):
        self.scale = scale
        # The source, a base for replay and a restored copy, what several repositories hold, and WAL.
        self.bytes_needed = scale * 18_200_000 * 4 + 8_000 * MB

    def describe(self):
        return {"data": self.name, "scale": self.scale}

    def fill(self, cluster):
        cluster.command("pgbench", *cluster.address(), "-i", "-q", *self.accounts.split(), "-s", str(self.scale), "postgres")
        cluster.sql(TABLE.format(table="documents", options=self.documents))
        rows, step = self.scale * 2500, 100_000
        parts = [(first, min(first + step - 1, rows)) for first in range(1, rows + 1, step)]
        two_at_once(cluster, [documents("documents", first, last) for first, last in parts])
        cluster.sql("alter table documents add primary key (id)")
        cluster.sql("vacuum freeze analyze", "checkpoint")


class Large(Main):
    """Main seven times over or more: at least 25 GB, which scale 1400 gives."""

    name = "large"
    settings = "max_wal_size = 2GB\nwal_keep_size = 256MB\n"

    def __init__(self, scale):
        super().__init__(scale)
        self.bytes_needed = scale * (2 * 18_200_000 + 2 * 2_300_000) + 4_000 * MB


class Spread(Main):
    """For the slope: tables with room on each page, so that a row can change where it is."""

    name = "spread"
    accounts, documents = "-F 80", "with (fillfactor = 70)"

    @staticmethod
    def change(cluster, percent):
        """Changes one row on so many per cent of the pages of each table, evenly spread."""
        if percent:
            page = "(ctid::text::point)[0]::bigint"
            for table, column in (("pgbench_accounts", "abalance = abalance + 1"), ("documents", "made = made + interval '1 s'")):
                first_rows = f"select min(ctid) from {table} group by {page} having {page} % 100 < {percent}"
                cluster.sql(f"update {table} set {column} where ctid = any(array({first_rows}))")


class Many:
    name = "many"
    # Several tables each transaction: each locks four relations.
    settings = "max_locks_per_transaction = 1024\n"
    step = 200

    def __init__(self, scale):
        self.tables = scale * 100
        self.scale = scale
        self.bytes_needed = self.tables * 45_000 * 4 + 8_000 * MB

    def describe(self):
        return {"data": self.name, "scale": self.scale, "tables": self.tables}

    def fill(self, cluster):
        cluster.command("pgbench", *cluster.address(), "-i", "-q", "-s", "1", "postgres")
        firsts = range(1, self.tables + 1, self.step)
        two_at_once(cluster, [MANY.format(first=first, last=min(first + self.step - 1, self.tables)) for first in firsts])
        cluster.sql(TABLE.format(table="documents", options=""), "checkpoint")


DATA_SETS = {"main": (Main, 200), "many": (Many, 200), "large": (Large, 1400)}  # with the usual scale


def documents(table, first, last):
    """The statements that add documents number `first` to `last`."""
    return DOCUMENTS.replace("{table}", table).replace("{first}", str(first)).replace("{last}", str(last))


def append(cluster, megabytes, seed):
    """Adds about so many megabytes of new documents in a table of their own, as an application's log grows."""
    table = "appended"
    rows = megabytes * MB // BYTES_PER_ROW
    first = 1_000_000_000 + seed * 10_000_000
    cluster.sql(TABLE.format(table=table, options="").replace("create table", "create table if not exists"))
    middle = first + rows // 2
    two_at_once(cluster, [documents(table, first, middle), documents(table, middle + 1, first + rows)])


def two_at_once(cluster, statements):
    """Runs the statements on two sessions, one transaction each."""
    halves = [statements[0::2], statements[1::2]]
    command = [os.path.join(cluster.bin, "psql"), *cluster.address(), "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]
    sessions = []
    for half in halves:
        session = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=cluster.folder, **as_user(cluster.user))
        session.stdin.write("\n".join(without_repeats(half)).encode())
        session.stdin.close()
        sessions.append(session)
    if any(session.wait() != 0 for session in sessions):
        raise RuntimeError("the data set could not be made")


def without_repeats(statements):
    """A session needs the temporary function once."""
    return [text if number == 0 else text.replace(SENTENCE, "") for number, text in enumerate(statements)]
