#!/usr/bin/env bash
# Brings a backup of scripts/backup-db.sh back into the database that DATABASE_URL names: over its schema public.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: DATABASE_URL=postgres://… scripts/restore-db.sh BACKUP

BACKUP is a file, .sql or .sql.gz, or the id of a backup in pgkeep's
repository (`latest` for the newest; `pgkeep list` shows them). The schema
public of the database is dropped and made anew, all in one transaction: if
anything fails, the database stays as it was.

  DATABASE_URL         the database that is overwritten
  BACKUP_DIR, AWS_S3_BUCKET, PGKEEP_REPOSITORY, PGKEEP_KEY_FILE, PGKEEP_CLUSTER
                       as scripts/backup-db.sh has them
  PGKEEP, PSQL         the programs                            [pgkeep, psql]

A file is for a database whose schemas but public are not in it. Where there
are others, restore by the backup's id.
TEXT
}

fail() {
    echo "restore-db: $*" >&2
    exit 1
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
if [ $# -ne 1 ] || [ -z "$1" ]; then
    usage >&2
    exit 2
fi
: "${DATABASE_URL:?restore-db: DATABASE_URL is not set}"
backup=$1
pgkeep=${PGKEEP:-pgkeep}
psql=${PSQL:-psql}
folder=${BACKUP_DIR:-/backups}

# The parts of the URL: scheme://user:password@host/name?query.
case "$DATABASE_URL" in
    postgres://* | postgresql://*) ;;
    *) fail "DATABASE_URL is no postgres:// URL" ;;
esac
rest=${DATABASE_URL#*://}
query=
if [[ $rest == *\?* ]]; then query=${rest#*\?} rest=${rest%%\?*}; fi
name=
if [[ $rest == */* ]]; then name=${rest#*/}; fi
authority=${rest%%/*}
user=
if [[ $authority == *@* ]]; then user=${authority%@*} authority=${authority##*@}; fi
password=
if [[ $user == *:* ]]; then password=${user#*:} user=${user%%:*}; fi
if [[ "&$query" == *"&password="* ]]; then fail "the password belongs before the host of DATABASE_URL, not behind the question mark"; fi
socket=$(tr '&' '\n' <<<"$query" | sed -n 's/^host=//p')
host=${authority:-${socket:-the usual one}}
plain=$(printf %s "$name" | tr -c 'A-Za-z0-9_-' _)
plain=${plain:-database}

kind=id
case "$backup" in
    *.sql | *.sql.gz)
        kind=file
        [ -f "$backup" ] || fail "there is no file $backup"
        [ -s "$backup" ] || fail "$backup is empty"
        if [[ $backup == *.gz ]]; then gzip -t "$backup" || fail "$backup is damaged"; fi
        ;;
    */* | *.gz | *.dump) fail "$backup is neither a .sql or .sql.gz file nor a backup's id" ;;
esac

cat >&2 <<TEXT
WARNING: this OVERWRITES the database.
  host:      $host
  database:  ${name:-the one of the role\'s name}
  backup:    $backup
The schema public and everything in it is dropped, and made anew from the backup.
TEXT
printf 'Type yes to go on: ' >&2
answer=
read -r answer || true
if [ "$answer" != yes ]; then
    echo "Restore cancelled"
    exit 1
fi

unpack() {
    case "$backup" in
        *.gz) gzip -dc "$backup" ;;
        *) cat "$backup" ;;
    esac
}

# What psql runs: the file between the beginning of a transaction and its end. Between, psql runs no commands of its own, with which
# a file could run programs on this machine; the file's own beginning and end of that are left out.
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
script() {
    printf '\\restrict %s\n' "$token"
    cat <<'SQL'
BEGIN;
DROP SCHEMA IF EXISTS public CASCADE;
CREATE SCHEMA public;
GRANT USAGE ON SCHEMA public TO PUBLIC;
DO $$
BEGIN
    -- As a new database has it; not every role may give it away.
    ALTER SCHEMA public OWNER TO pg_database_owner;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE NOTICE 'the schema public belongs to %', current_user;
END $$;
SQL
    # Large objects are in no schema: those of the file take the place of what has their numbers.
    unpack | sed -n "s/^SELECT pg_catalog.lo_create('\([0-9]*\)');\$/SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata WHERE oid = \1;/p"
    unpack | sed "/^\\\\\(un\)\{0,1\}restrict $own\$/d"
    printf '\nCOMMIT;\n'
}

if [ "$kind" = file ]; then
    # A file that was cut would end in a COMMIT of ours.
    unpack | tail -n 20 | grep -q '^-- PostgreSQL database dump complete$' || fail "$backup is not the whole of a dump"
    # The password goes by the environment: an argument could be seen by every user of this machine.
    if [ -n "$password" ]; then
        printf -v PGPASSWORD '%b' "$(sed 's/\\/\\\\/g; s/%\([0-9A-Fa-f][0-9A-Fa-f]\)/\\x\1/g' <<<"$password")"
        export PGPASSWORD
    fi
    url="${DATABASE_URL%%://*}://${user:+$user@}$authority${name:+/$name}${query:+?$query}"
    printf '\\restrict %s\n' "$token" | env -u DATABASE_URL "$psql" -X -q -v ON_ERROR_STOP=1 -d "$url" -f - ||
        fail "psql could not begin: it must reach the server, and be 13.22, 14.19, 15.14, 16.10, 17.6, 18 or later"
    own=$({ unpack || true; } | sed -n 's/^\\restrict \([A-Za-z0-9]\{1,\}\)$/\1/p;/^\\restrict /q;100q')
    own=${own:-none}
    script | env -u DATABASE_URL "$psql" -X -q -v ON_ERROR_STOP=1 -d "$url" -f - >/dev/null ||
        fail "psql could not restore $backup"
else
    if [ -n "${AWS_S3_BUCKET:-}" ]; then
        export PGKEEP_REPOSITORY="${PGKEEP_REPOSITORY:-s3://$AWS_S3_BUCKET/backups}"
    else
        export PGKEEP_REPOSITORY="${PGKEEP_REPOSITORY:-$folder/pgkeep}"
    fi
    export PGKEEP_CLUSTER="${PGKEEP_CLUSTER:-$(printf %s "$plain" | tr A-Z a-z | sed 's/^[_-]*//; s/^$/database/')}"
    if [ -z "${PGKEEP_KEY_FILE:-}${PGKEEP_PASSPHRASE:-}${PGKEEP_PASSPHRASE_FILE:-}${PGKEEP_PASSPHRASE_COMMAND:-}" ]; then
        export PGKEEP_KEY_FILE="$folder/pgkeep.key"
    fi
    "$pgkeep" restore "$backup" --into env:DATABASE_URL --clean --schema public --yes --quiet
fi
echo "restore-db: restored from $backup"
echo "restore-db: run your application's migrations now, if it is newer than the backup; then ANALYZE"
