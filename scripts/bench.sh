#!/usr/bin/env bash
# pgark and its peers on the same data, in one run, in ratios.
#
# Usage: scripts/bench.sh [--gb N] [--jobs N] [--runs N] [--shape mixed|one] [--dumps] [--keep]
#
# A server of its own on a Unix socket, a generated database (wide rows, narrow rows, JSON with
# a GIN index, big text; with --shape one a single table is 95 % of it), then each contestant in turn, RUNS
# times, medians quoted; in every second run in the opposite order. --dumps leaves the old pipeline and the restores out.
# "cpu" is what the contestant and the server used, "own" the contestant alone; "memory" is the largest resident
# size of its biggest process.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/bench-lib.sh
. scripts/bench-lib.sh

gb=2 jobs=2 runs=1 shape=mixed dumps= keep=
options "gb jobs runs shape dumps! keep!" "$@"
case $shape in
    mixed) few=$gb wide=$gb ;;
    one) few=$(awk "BEGIN { print $gb * 0.067 }") wide=$(awk "BEGIN { print $gb * 3.8 }") ;;
    *) say "no shape $shape; there are mixed and one"; exit 2 ;;
esac

open_bench
start_server 5499 shared_buffers=1GB maintenance_work_mem=256MB max_parallel_maintenance_workers="$jobs"
say "making $gb GB of data …"
make_tables "$few" "$wide"

out=$work/out
mkdir "$out"
export bin out jobs
run_pgark() { # codec, recipients or nothing
    rm -rf "$out/pgark"
    mkdir "$out/pgark"
    measure dump "pgark $1${2:+ encrypted}" "$out/pgark" env BACKUP_ENCRYPT_RECIPIENTS="${2:-}" DB_HOST="$PGHOST" DB_PORT="$PGPORT" DB_USER=postgres BACKUP_DIR="$out/pgark" \
        BACKUP_JOBS="$jobs" BACKUP_COMPRESSION="$1" PGARK_PG_BIN="$bin" "$pgark" --quiet backup --database bench
}
# Every restore makes its database itself, as pgark's does.
fresh() { psql -d postgres -c 'SET client_min_messages = warning' -c 'DROP DATABASE IF EXISTS target WITH (FORCE)'; }
create='"$bin/createdb" -T template0 target'
recipient=$("$pgark" --quiet keygen --out "$work/key")

dump_old() { measure dump 'pg_dump | gzip; sha256sum' "$out/old.sql.gz" \
    bash -c '"$bin/pg_dump" -d bench | gzip >"$out/old.sql.gz" && sha256sum "$out/old.sql.gz"'; }
dump_peer_gzip() {
    rm -rf "$out/fd"
    measure dump "pg_dump -Fd -j$jobs -Z1" "$out/fd" "$bin/pg_dump" -Fd -j"$jobs" -Z1 -d bench -f "$out/fd"
}
dump_peer_zstd() {
    "$bin/pg_dump" --help | grep -q 'METHOD\[:DETAIL\]' || return 0
    rm -rf "$out/fdz"
    measure dump "pg_dump -Fd -j$jobs zstd:3" "$out/fdz" "$bin/pg_dump" -Fd -j"$jobs" --compress=zstd:3 -d bench -f "$out/fdz"
    rm -rf "$out/fdz"
}
dump_zstd() { run_pgark zstd; }
dump_zstd_sealed() { run_pgark zstd "$recipient"; }
dump_gzip_sealed() { run_pgark gzip "$recipient"; }
dump_gzip() { run_pgark gzip; }
dump_floor() { measure dump "COPY to nothing, $jobs connections" - bash -c '
    for half in "SELECT * FROM narrow" "SELECT * FROM wide" "SELECT * FROM event" "SELECT * FROM article"; do echo "$half"; done |
    xargs -P "$jobs" -I{} "$bin/psql" -X -q -d bench -c "COPY ({}) TO STDOUT" -o /dev/null'; }
restores() {
    fresh
    measure restore 'gunzip | psql' - bash -c "$create"' && gunzip -c "$out/old.sql.gz" | "$bin/psql" -X -q -v ON_ERROR_STOP=1 -d target >/dev/null && "$bin/psql" -X -q -d target -c ANALYZE'
    fresh
    measure restore "pg_restore -j$jobs" - bash -c "$create"' && "$bin/pg_restore" -j"$jobs" -d target "$out/fd" && "$bin/psql" -X -q -d target -c ANALYZE'
    run_pgark gzip
    fresh
    measure restore "pgark restore -j$jobs" - env DB_HOST="$PGHOST" DB_PORT="$PGPORT" DB_USER=postgres BACKUP_DIR="$out/pgark" \
        PGARK_PG_BIN="$bin" "$pgark" --quiet restore latest --jobs "$jobs" --into target
    psql -At -d target -c 'SELECT count(*) FROM event' >/dev/null
    psql -d postgres -c 'DROP DATABASE target WITH (FORCE)'
}

order=(dump_peer_gzip dump_peer_zstd dump_zstd dump_zstd_sealed dump_gzip dump_gzip_sealed dump_floor)
for run in $(seq "$runs"); do
    [ -n "$dumps" ] || dump_old
    for at in $(seq 0 $((${#order[@]} - 1))); do
        # Who runs after whom has shown in the ratios.
        if [ $((run % 2)) = 1 ]; then "${order[at]}"; else "${order[-1 - at]}"; fi
    done
    [ -n "$dumps" ] || restores
done

echo
echo "$(machine), $gb GB ($shape), $jobs jobs, $runs run(s); medians. Every restore includes ANALYZE."
echo
table wall cpu own memory size ratio cpu-ratio
