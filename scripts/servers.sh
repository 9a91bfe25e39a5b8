# Starts the object stores the tests talk to, on free loopback ports, and stops them; and finds the tests a place in memory.
# Sourced by ./test after cache.sh.

servers=()   # process ids of what start_* started

stop_servers() {
    if [ ${#servers[@]} -gt 0 ]; then
        kill "${servers[@]}" 2>/dev/null || true
        wait "${servers[@]}" 2>/dev/null || true
    fi
    [ -z "${run_folder:-}" ] || rm -rf "$run_folder"
    [ -z "${memory_folder:-}" ] || rm -rf "$memory_folder"
}

# work_in_memory: where there is enough of it, TMPDIR becomes a folder in memory. Tests make and remove servers and
# databases, which are a thousand small files each; on a disk that takes most of their time.
work_in_memory() {
    local shared=/dev/shm needed_kib room available
    [ -z "${TMPDIR:-}" ] || return 0
    # Tests of one thread were seen to hold half a GiB; servers and the build want memory, too.
    needed_kib=$(($(nproc) * 2 << 20))
    room=$(df --output=avail -k "$shared" 2>/dev/null | tail -n 1 || true)
    available=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
    [ "${room:-0}" -ge "$needed_kib" ] && [ "${available:-0}" -ge $((needed_kib * 3 / 2)) ] || return 0
    memory_folder=$(mktemp -d "$shared/pgkeep.XXXX")
    # Servers run as another user, and from some such places nobody may run a program.
    chmod 1777 "$memory_folder"
    cp /bin/true "$memory_folder/"
    if "$memory_folder/true" 2>/dev/null; then export TMPDIR=$memory_folder; fi
    rm "$memory_folder/true"
}

# start_s3 PYTHON: moto with one bucket; exports PGKEEP_TEST_S3_ENDPOINT and PGKEEP_TEST_S3_BUCKET. Any key is accepted.
start_s3() {
    local port
    port=$("$1" scripts/stores.py free-port)
    "$1" -m moto.server -H 127.0.0.1 -p "$port" >"$run_folder/moto.log" 2>&1 </dev/null &
    servers+=($!)
    export PGKEEP_TEST_S3_ENDPOINT=http://127.0.0.1:$port PGKEEP_TEST_S3_BUCKET=pgkeep-test
    "$1" scripts/stores.py make-bucket "$PGKEEP_TEST_S3_ENDPOINT" "$PGKEEP_TEST_S3_BUCKET" \
        || { tail -20 "$run_folder/moto.log" >&2; die "the S3 server did not start"; }
}

# start_azure PYTHON AZURITE: Azurite's blob service with one container, account devstoreaccount1 and its public key.
start_azure() {
    local port
    port=$("$1" scripts/stores.py free-port)
    "$2" --blobHost 127.0.0.1 --blobPort "$port" --location "$run_folder/azurite" --silent --skipApiVersionCheck \
        --disableTelemetry >"$run_folder/azurite.log" 2>&1 </dev/null &
    servers+=($!)
    export PGKEEP_TEST_AZURE_ENDPOINT=http://127.0.0.1:$port/devstoreaccount1 PGKEEP_TEST_AZURE_CONTAINER=pgkeep-test
    "$1" scripts/stores.py make-container "$PGKEEP_TEST_AZURE_ENDPOINT" "$PGKEEP_TEST_AZURE_CONTAINER" \
        || { tail -20 "$run_folder/azurite.log" >&2; die "Azurite did not start"; }
}
