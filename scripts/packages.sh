# Installs the Debian packages that are missing, and says so. Sourced by ./test, ./try and bench/run.sh.
# Works as root or through sudo; where there is no apt-get it only names what it would have installed.

say() { printf '>> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2
}

# need PACKAGE...: installs those of the packages that are not there.
need() {
    local missing=() package
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here; these must be installed already: $*"
        return 0
    fi
    for package in "$@"; do installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing with apt-get: ${missing[*]}"
    as_root apt-get update -q >&2
    apt_install "${missing[@]}"
}

# need_build: what cargo needs to build pgkeep (C compiler, OpenSSL for the bundled libpq, cmake for aws-lc).
need_build() {
    command -v cargo >/dev/null || die "no cargo: install a Rust toolchain (rust-version in Cargo.toml) first"
    need build-essential cmake libssl-dev perl pkg-config
}

# The folder of the newest PostgreSQL that the distribution has installed; of 15 where it is there.
distribution_postgresql() {
    local bin
    for bin in /usr/lib/postgresql/15/bin $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV); do
        if [ -x "$bin/postgres" ]; then echo "$bin"; return 0; fi
    done
    return 1
}

# need_pgbouncer: the program only. The package starts a service, which is stopped again if it was not there before.
need_pgbouncer() {
    if installed pgbouncer; then return 0; fi
    need pgbouncer
    if command -v systemctl >/dev/null; then as_root systemctl disable --now pgbouncer >/dev/null 2>&1 || true; fi
}

# need_postgresql: PostgreSQL 15 where the distribution has it, otherwise the distribution's own major. The package
# would make and start a cluster on port 5432; only its programs are wanted, so that is switched off for the while.
need_postgresql() {
    local package=postgresql-15 conf=/etc/postgresql-common/createcluster.conf
    if distribution_postgresql >/dev/null; then return 0; fi
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here and no PostgreSQL below /usr/lib/postgresql: install one"
        return 0
    fi
    as_root apt-get update -q >&2
    apt-cache show postgresql-15 >/dev/null 2>&1 || package=postgresql
    say "installing with apt-get: $package (programs only, no cluster is made)"
    apt_install postgresql-common
    as_root sed -i 's/^#\?create_main_cluster = .*/create_main_cluster = false/' "$conf"
    apt_install "$package"
    as_root sed -i 's/^create_main_cluster = false/#create_main_cluster = true/' "$conf"
}
