# Starts the object stores the tests talk to, on free loopback ports, and stops them. Sourced by ./test after cache.sh.

servers=()   # process ids of what start_* started

stop_servers() {
    if [ ${#servers[@]} -gt 0 ]; then
        kill "${servers[@]}" 2>/dev/null || true
        wait "${servers[@]}" 2>/dev/null || true
    fi
    [ -z "${run_folder:-}" ] || rm -rf "$run_folder"
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
