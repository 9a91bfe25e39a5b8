#!/bin/sh
# Backs up the database that DATABASE_URL names: into a repository, and as a dated file that psql takes without pgkeep.
set -eu
umask 077

usage() {
    cat <<'TEXT'
usage: DATABASE_URL=postgres://… scripts/backup-db.sh

Takes a logical backup into pgkeep's repository, writes the same backup to
$BACKUP_DIR/<name>_YYYYMMDD_HHMMSS.sql.gz, and removes what is older than 30
days of both. Needs pgkeep and PostgreSQL's client programs.

  DATABASE_URL         the database
  BACKUP_DIR           where the dated files are               [/backups]
  BACKUP_KEEP_DAYS     how many days they are kept             [30]
  AWS_S3_BUCKET        if set, the repository is s3://<bucket>/backups: that
                       is the upload. It is encrypted and deduplicated; the
                       dated file is neither and stays on this machine
  PGKEEP_REPOSITORY    another place for the repository
                       [s3://$AWS_S3_BUCKET/backups or $BACKUP_DIR/pgkeep]
  PGKEEP_KEY_FILE      the key that opens the repository       [$BACKUP_DIR/pgkeep.key]
                       or PGKEEP_PASSPHRASE, PGKEEP_PASSPHRASE_FILE
  PGKEEP_CLUSTER       the database's name in the repository   [its name]
  PGKEEP               the program                             [pgkeep]

The first run makes the repository, the key if there is none, and
$BACKUP_DIR/pgkeep.recovery-key: take that file off this machine and keep it.
Whoever loses every key loses every backup in the repository.
TEXT
}

fail() {
    echo "backup-db: $*" >&2
    exit 1
}

case "${1:-}" in
    "") ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

: "${DATABASE_URL:?backup-db: DATABASE_URL is not set}"
pgkeep=${PGKEEP:-pgkeep}
folder=${BACKUP_DIR:-/backups}
keep_days=${BACKUP_KEEP_DAYS:-30}
case "$keep_days" in
    "" | *[!0-9]*) fail "BACKUP_KEEP_DAYS is $keep_days, and not a number of days" ;;
esac

# The name of the database, which the file has: the last part of the URL's path, as far as a file may be named so.
name=${DATABASE_URL%%\?*}
name=${name#*://}
case "$name" in
    */*) name=${name##*/} ;;
    *) name= ;;
esac
name=$(printf %s "$name" | tr -c 'A-Za-z0-9_-' _)
name=${name:-database}

mkdir -p "$folder"
if [ -n "${AWS_S3_BUCKET:-}" ]; then
    export PGKEEP_REPOSITORY="${PGKEEP_REPOSITORY:-s3://$AWS_S3_BUCKET/backups}"
else
    export PGKEEP_REPOSITORY="${PGKEEP_REPOSITORY:-$folder/pgkeep}"
fi
export PGKEEP_CLUSTER="${PGKEEP_CLUSTER:-$(printf %s "$name" | tr A-Z a-z | sed 's/^[_-]*//; s/^$/database/')}"
if [ -z "${PGKEEP_KEY_FILE:-}${PGKEEP_PASSPHRASE:-}${PGKEEP_PASSPHRASE_FILE:-}${PGKEEP_PASSPHRASE_COMMAND:-}" ]; then
    export PGKEEP_KEY_FILE="$folder/pgkeep.key"
fi
# pgkeep reads DATABASE_URL by itself: it is never an argument, which every user of this machine could see.
export PGKEEP_DATABASE_URL="$DATABASE_URL"
export PGKEEP_RETENTION_KEEP="${PGKEEP_RETENTION_KEEP:-${keep_days}d}"

# Of a repository that is there this changes nothing.
recovery="$folder/pgkeep.recovery-key"
had_recovery=no
if [ -e "$recovery" ]; then had_recovery=yes; fi
"$pgkeep" init --no-server --recovery-key-file "$recovery" --quiet >/dev/null
if [ "$had_recovery" = no ] && [ -e "$recovery" ]; then
    echo "backup-db: made the repository $PGKEEP_REPOSITORY"
    echo "backup-db: its recovery key is in $recovery: take it off this machine and keep it safe"
fi

"$pgkeep" backup --mode logical --quiet

file="$folder/${name}_$(date -u +%Y%m%d_%H%M%S).sql.gz"
"$pgkeep" export latest --format plain --single-transaction --output "$file" --quiet
# A file that does not end as a dump ends is none, whatever its length.
if ! gzip -dc "$file" | tail -n 20 | grep -q '^-- PostgreSQL database dump complete$'; then
    rm -f "$file"
    fail "the dated file was empty or short, and was removed; the backup in the repository is another thing: \`pgkeep verify\`"
fi
if ! gzip -dc "$file" | grep -Eq '^(CREATE (UNLOGGED )?TABLE|COPY) '; then
    rm -f "$file"
    fail "the database has nothing in it: is $name the right one?"
fi
echo "backup-db: $file, $(wc -c <"$file" | tr -d ' ') bytes"

"$pgkeep" expire --quiet
"$pgkeep" prune --quiet
# Only what this script has written, and only after a new one is there.
find "$folder" -maxdepth 1 -type f -name "${name}_[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]_[0-9][0-9][0-9][0-9][0-9][0-9].sql.gz" \
    -mtime "+$keep_days" ! -path "$file" -print -exec rm -f {} +
