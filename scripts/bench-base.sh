#!/usr/bin/env bash
# Base backups of pgark and its peers on the same data, in one run, in ratios.
#
# Usage: scripts/bench-base.sh [--gb N] [--scale N] [--jobs N] [--runs N] [--keep]
#
# A server of its own with the tables of bench.sh (GB) and pgbench's (SCALE, some 15 MB each). Full
# backups by pg_basebackup (-Ft, client and server zstd:3), pgBackRest (JOBS processes, zst:3, a
# repository on the same disk) and pgark (zstd, JOBS compressors), each with the WAL that it needs, each durable;
# the floor is BASE_BACKUP into nothing. Then restores into an empty directory, and an incremental backup
# after 1 % of pgbench's rows changed (PostgreSQL 17+). All run as the server's user, in turns, in the opposite
# order every second run; medians. "cpu" is what the contestant and the server used, "own" the contestant alone.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/bench-lib.sh
. scripts/bench-lib.sh

gb=1 scale=40 jobs=2 runs=1 keep=
options "gb scale jobs runs keep!" "$@"
open_bench
pgbackrest=$cache/pgbackrest/usr/bin/pgbackrest
[ -x "$pgbackrest" ] || die "pgBackRest is missing; run scripts/setup.sh bench"
[ "$major" -ge 17 ] || die "needs PostgreSQL 17, and $bin is older; run scripts/setup.sh test"

out=$work/out
mkdir "$out" "$out/pgark" "$out/repo" "$out/spool"
start_server 5496 shared_buffers=1GB maintenance_work_mem=256MB summarize_wal=on archive_mode=on
cat >"$out/pgbackrest.conf" <<INI
[global]
repo1-path=$out/repo
process-max=$jobs
compress-type=zst
compress-level=3
log-level-file=off
log-level-console=warn
lock-path=$out/spool
spool-path=$out/spool
start-fast=y
repo1-retention-full=9
[bench]
pg1-path=$work/pg/data
pg1-socket-path=$work/pg
pg1-port=$PGPORT
INI
give_to_server "$out" "$out"/*
rest() { as_server "$pgbackrest" --config="$out/pgbackrest.conf" --stanza=bench "$@"; }
archive_by() { psql -d postgres -c "ALTER SYSTEM SET archive_command = '$1'" -c 'SELECT pg_reload_conf()' -c CHECKPOINT >/dev/null; }
archive_by true # what making the data wrote is nobody's
say "making $gb GB of data and pgbench's at scale $scale …"
make_tables "$gb" "$gb"
"$bin/pgbench" -i -q -I dtgvp -s "$scale" bench >/dev/null 2>&1
archive_by "$pgbackrest --config=$out/pgbackrest.conf --stanza=bench archive-push %p"
rest stanza-create
say "cluster of $(psql -At -d bench -c 'SELECT pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database')"

export bin out jobs pgark
fresh() { rm -rf "$1"; mkdir -p "$1"; chmod 700 "$1"; give_to_server "$1"; }
run() { # as `measure`, as the server's user
    if [ "$(id -u)" = 0 ]; then measure "$1" "$2" "$3" setpriv --reuid=postgres --regid=postgres --clear-groups "${@:4}"; else measure "$@"; fi
}
as_pgark() { # MEASURE'S FIRST ARGUMENTS, then pgark's
    run "$1" "$2" "$3" env DB_HOST="$PGHOST" DB_PORT="$PGPORT" DB_USER=postgres BACKUP_DIR="$out/pgark" PGARK_STATE_DIR="$out/spool" BACKUP_JOBS="$jobs" \
        BACKUP_COMPRESSION=zstd PGARK_PG_BIN="$bin" "$pgark" "${@:4}"
}

full_client() { fresh "$out/client"; run backup "pg_basebackup -Ft client-zstd:3" "$out/client" "$bin/pg_basebackup" -c fast -Ft --compress=client-zstd:3 -D "$out/client"; }
full_server() { fresh "$out/server"; run backup "pg_basebackup -Ft server-zstd:3" "$out/server" "$bin/pg_basebackup" -c fast -Ft --compress=server-zstd:3 -D "$out/server"; rm -rf "$out/server"; }
full_rest() {
    rm -rf "$out"/repo/*
    rest stanza-create
    run backup "pgBackRest zst:3, $jobs processes" "$out/repo/backup" "$pgbackrest" --config="$out/pgbackrest.conf" --stanza=bench --type=full backup
}
full_pgark() { fresh "$out/pgark"; as_pgark backup "pgark zstd, $jobs compressors" "$out/pgark" --quiet backup --base --no-prune; }
full_floor() { run backup "BASE_BACKUP into nothing" - bash -c '"$bin/pg_basebackup" -c fast -Ft -X none -D - >/dev/null'; }

restore_rest() { fresh "$out/restored"; run restore "pgBackRest restore, $jobs processes" - "$pgbackrest" --config="$out/pgbackrest.conf" --stanza=bench --pg1-path="$out/restored" restore; }
restore_pgark() { fresh "$out/restored"; as_pgark restore "pgark restore --data-dir" - --quiet restore latest --data-dir "$out/restored"; }
restore_tar() { fresh "$out/restored"; run restore "zstd -dc | tar -x, sync" - bash -c 'zstd -dcq "$out/client/base.tar.zst" | tar -x -C "$out/restored" && sync "$out/restored"'; }

increment_rest() { run "after 1 %" "pgBackRest incr" "$out/repo/backup" "$pgbackrest" --config="$out/pgbackrest.conf" --stanza=bench --type=incr backup; }
increment_pgark() { as_pgark "after 1 %" "pgark --incremental" "$out/pgark" --quiet backup --base --incremental --no-prune; }

in_turns() { # RUN STEP…
    local turn=$1 at
    shift
    local steps=("$@")
    for at in $(seq 0 $(($# - 1))); do
        if [ $((turn % 2)) = 1 ]; then "${steps[at]}"; else "${steps[-1 - at]}"; fi
    done
}
for run in $(seq "$runs"); do
    in_turns "$run" full_client full_server full_rest full_pgark full_floor
    in_turns "$run" restore_rest restore_pgark restore_tar
done
# What is stored grows by the increment: its size is the difference.
say "changing 1 % …"
full_size() { du -sb "$1" | cut -f1; }
before_rest=$(full_size "$out/repo/backup") before_pgark=$(full_size "$out/pgark")
psql -d bench -c "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= (SELECT max(aid) / 100 FROM pgbench_accounts)" -c CHECKPOINT
increment_rest
increment_pgark
awk -F'\t' -v OFS='\t' -v r="$before_rest" -v p="$before_pgark" '$1 == "after 1 %" { $7 -= $2 ~ /^pgark/ ? p : r } 1' "$results" >"$results.new"
mv "$results.new" "$results"

echo
echo "$(machine), $gb GB and pgbench at scale $scale, $jobs jobs, $runs run(s); medians."
echo
table wall cpu own memory size ratio cpu-ratio
