#!/usr/bin/env bash
# Streaming WAL by pgark and by pg_receivewal under the same load, and a server's recovery through `pgark wal-get`
# against one from local files, in one run, in ratios.
#
# Usage: scripts/bench-wal.sh [--scale N] [--transactions N] [--gb N] [--runs N] [--keep]
#
# Streams: pgbench (TRANSACTIONS on each of 4 connections, SCALE of some 15 MB), then GB of rows in one INSERT, each contestant
# alone with the load, in turns, in the opposite order every second run; medians. "own" is the CPU time of what receives,
# "behind" how long after the load's end its last byte is confirmed, "kept" what is stored of the WAL, open segment included.
# pgark and `--synchronous` flush what arrives before they confirm it; pg_receivewal else flushes whole segments.
# Recovery: one base backup and the WAL of pgbench after it; how long a server takes from its start to the end of
# its recovery, when the WAL lies in pg_wal, comes by `cp` from files that are not compressed, and by `pgark wal-get`.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/bench-lib.sh
. scripts/bench-lib.sh

scale=20 transactions=15000 gb=1 runs=1 keep=
options "scale transactions gb runs keep!" "$@"
open_bench

out=$work/out
mkdir "$out"
start_server 5495 shared_buffers=1GB wal_level=replica wal_keep_size=0
give_to_server "$out"
pgbench() { "$bin/pgbench" -d bench "$@" >/dev/null 2>"$work/pgbench.log" || die "pgbench failed: $(tail -n 3 "$work/pgbench.log")"; }
psql -d postgres -c 'CREATE DATABASE bench TEMPLATE template0'
say "making pgbench's tables at scale $scale …"
pgbench -i -q -I dtgvp -s "$scale"
psql -d bench -c 'CREATE TABLE bulk (id bigint, at timestamptz, payload text)'

fresh() { rm -rf "$1"; mkdir -p "$1"; chmod 700 "$1"; give_to_server "$1"; }
as_pgark() { # pgark's arguments; as the server's user
    as_server env DB_HOST="$PGHOST" DB_PORT="$PGPORT" DB_USER=postgres BACKUP_DIR="$out/pgark" PGARK_STATE_DIR="$out/state" PGARK_PG_BIN="$bin" \
        BACKUP_COMPRESSION="${compression:-gzip}" "$pgark" "$@"
}
now() { date +%s.%N; }

# ---- streaming ------------------------------------------------------------------------

confirmed() { psql -At -d postgres -c "SELECT coalesce(bool_or(flush_lsn >= '$1'), false) FROM pg_stat_replication"; }
wait_for() { # LSN: until the receiver has confirmed it
    local ticks=0
    until [ "$(confirmed "$1")" = t ]; do
        sleep 0.05
        ticks=$((ticks + 1))
        [ $ticks -lt 2400 ] || { tail -n 5 "$work/err.log" >&2; die "the receiver does not confirm $1"; }
    done
}
load_pgbench() { pgbench -n -c 4 -j 2 -t "$transactions"; }
load_bulk() {
    psql -d bench -c "INSERT INTO bulk SELECT i, timestamptz '2025-01-01' + i * interval '3 seconds', md5(i::text) || ' ' || repeat('lorem ipsum ', (i % 7)::int)
        FROM generate_series(1, (6500000 * $gb)::bigint) i"
}
# stream GROUP NAME DIR COMMAND…: a line of $results: group, name, wall s of the load, own cpu s, s behind, resident kB, bytes kept, bytes of WAL.
stream() {
    local group=$1 name=$2 dir=$3 from to t0 t1 t2 main
    shift 3
    psql -d bench -c 'TRUNCATE bulk' -c CHECKPOINT
    sync
    /usr/bin/time -f '%U %S %M' -o "$work/used" setpriv --pdeathsig KILL "$@" >"$work/out.log" 2>"$work/err.log" &
    main=$!
    psql -d postgres -c 'SELECT pg_switch_wal()' >/dev/null
    from=$(psql -At -d postgres -c 'SELECT pg_current_wal_lsn()')
    wait_for "$from"
    t0=$(now)
    "load_$group"
    t1=$(now)
    # A receiver that flushes whole segments only is asked for whole ones.
    to=$(psql -At -d postgres -c 'SELECT pg_switch_wal()')
    psql -d postgres -c 'SELECT pg_switch_wal()' >/dev/null
    wait_for "$to"
    t2=$(now)
    kill -TERM "$(pgrep -P "$main")"
    wait "$main" || true
    local wal
    wal=$(psql -At -d postgres -c "SELECT '$to'::pg_lsn - '$from'::pg_lsn")
    tail -n 1 "$work/used" | awk -v g="$group" -v n="$name" -v w="$(awk "BEGIN { print $t1 - $t0 }")" -v l="$(awk "BEGIN { print $t2 - $t1 }")" -v k="$(du -sb "$dir" | cut -f1)" -v wal="$wal" \
        '{ printf "%s\t%s\t%.2f\t%.2f\t%.2f\t%d\t%d\t%d\n", g, n, w, $1 + $2, l, $3, k, wal }' | tee -a "$results" |
        awk -F'\t' '{ printf "bench: %-8s %-40s load %6.1f s, own %6.2f s, behind %5.2f s\n", $1, $2, $3, $4, $5 }' >&2
    psql -At -d postgres -c "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active" >/dev/null
}
receive() { # GROUP NAME OPTION…
    fresh "$out/receive"
    "$bin/pg_receivewal" -D "$out/receive" --slot bench --create-slot --if-not-exists
    give_to_server "$out/receive"
    stream "$1" "pg_receivewal $2" "$out/receive" "${prefix[@]}" "$bin/pg_receivewal" -D "$out/receive" --slot bench "${@:3}"
}
if [ "$(id -u)" = 0 ]; then prefix=(setpriv --reuid=postgres --regid=postgres --clear-groups); else prefix=(env); fi
receive_gzip() { receive "$1" "-Z gzip:1" -Z gzip:1; }
receive_lz4() { receive "$1" "-Z lz4" -Z lz4; }
receive_plain() { receive "$1" "" -Z none; }
receive_synchronous() { receive "$1" "--synchronous" -Z none --synchronous; }
stream_pgark() {
    fresh "$out/pgark"
    fresh "$out/state"
    stream "$1" "pgark wal-stream" "$out/pgark" "${prefix[@]}" env DB_HOST="$PGHOST" DB_PORT="$PGPORT" DB_USER=postgres BACKUP_DIR="$out/pgark" PGARK_STATE_DIR="$out/state" \
        PGARK_PG_BIN="$bin" "$pgark" wal-stream
}
contestants=(receive_gzip receive_lz4 receive_plain receive_synchronous stream_pgark)
for run in $(seq "$runs"); do
    for group in pgbench bulk; do
        for at in $(seq 0 $((${#contestants[@]} - 1))); do
            if [ $((run % 2)) = 1 ]; then "${contestants[at]}" "$group"; else "${contestants[-1 - at]}" "$group"; fi
        done
    done
done
mv "$results" "$work/streams"
: >"$results"

# ---- recovery -------------------------------------------------------------------------

fresh "$out/pgark"
fresh "$out/state"
compression=zstd as_pgark --quiet wal-stream >"$work/stream.log" 2>&1 &
until [ "$(confirmed 0/1)" = t ]; do sleep 0.05; done
compression=zstd as_pgark --quiet backup --base --no-prune
begin=$(psql -At -d postgres -c 'SELECT pg_current_wal_lsn()')
say "making the WAL to recover from …"
pgbench -n -c 4 -j 2 -t $((transactions * 2))
load_bulk
end=$(psql -At -d postgres -c 'SELECT pg_switch_wal()')
psql -d postgres -c 'SELECT pg_switch_wal()' >/dev/null
wait_for "$end"
pkill -TERM -f "$pgark wal-stream" -P $$ || pkill -TERM -f "$pgark --quiet wal-stream"
wait_for_exit() { while pgrep -f "$pgark --quiet wal-stream" >/dev/null; do sleep 0.05; done; }
wait_for_exit
wal_bytes=$(psql -At -d postgres -c "SELECT '$end'::pg_lsn - '$begin'::pg_lsn")
say "recovering $((wal_bytes >> 20)) MiB of WAL"
fresh "$out/plain"
as_server bash -c 'for file in "$1"/pgark/wal/*/*.zst; do name=${file##*/}; zstd -dqo "$1/plain/${name%.zst}" "$file"; done' - "$out"

recover() { # NAME MODE: restores, then measures the server alone
    local name=$1 mode=$2 dir=$out/restored t0
    rm -rf "$dir"
    compression=zstd as_pgark --quiet restore latest --data-dir "$dir" --at latest --wal "${mode%%:*}" >/dev/null
    [ "$mode" != get:cp ] || as_server sed -i "s|^restore_command.*|restore_command = 'cp $out/plain/%f %p'|" "$dir/postgresql.auto.conf"
    sync
    t0=$(now)
    # It lets nobody in before it has recovered (of which pg_ctl knows nothing).
    as_server "$bin/pg_ctl" -D "$dir" -l "$out/log" -w -t 3600 -s -o "-k $out -p 5494 -c listen_addresses='' -c hot_standby=off -c shared_buffers=1GB -c max_wal_size=8GB" start >/dev/null ||
        { tail -n 5 "$out/log" >&2; die "$name did not start"; }
    until "$bin/pg_isready" -q -h "$out" -p 5494; do
        [ -e "$dir/postmaster.pid" ] || { tail -n 5 "$out/log" >&2; die "$name ended before it had recovered"; }
        sleep 0.02
    done
    awk -v n="$name" -v t0="$t0" -v t1="$(now)" 'BEGIN { printf "recovery\t%s\t%.2f\t0\t0\t0\t0\t0\n", n, t1 - t0 }' | tee -a "$results" >&2
    as_server "$bin/pg_ctl" -D "$dir" -m immediate -s stop
    rm -rf "$dir"
}
recoveries=("WAL in pg_wal (--wal fetch)|fetch" "cp from files|get:cp" "pgark wal-get|get")
for run in $(seq "$runs"); do
    for at in 0 1 2; do
        if [ $((run % 2)) = 1 ]; then one=${recoveries[at]}; else one=${recoveries[2 - at]}; fi
        recover "${one%|*}" "${one#*|}"
    done
done

echo
echo "$(machine), pgbench at scale $scale, 4 × $transactions transactions, then $gb GB of rows in one statement, $runs run(s); medians."
echo
awk -F'\t' '
function median(list,   n, i, j, t, a) { n = split(list, a, " "); for (i = 2; i <= n; i++) for (j = i; j > 1 && a[j-1]+0 > a[j]+0; j--) { t = a[j]; a[j] = a[j-1]; a[j-1] = t } return a[int((n + 1) / 2)] }
{ key = $1 FS $2; if (!(key in wall)) order[++rows] = key
  wall[key] = wall[key] " " $3; own[key] = own[key] " " $4; behind[key] = behind[key] " " $5; memory[key] = memory[key] " " $6; kept[key] = kept[key] " " $7; wal[key] = wal[key] " " $8; each[key] = each[key] " " $4 / $8 * 1e9 }
END {
    print "| | load s | WAL MiB | own cpu s | own cpu s per GB | behind s | memory MiB | kept MiB | ratio of cpu per GB to the first |"
    print "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for (i = 1; i <= rows; i++) {
        key = order[i]; split(key, part, FS); busy = median(each[key])
        if (part[1] != group) { group = part[1]; first = busy }
        printf "| %s: %s | %.1f | %.0f | %.2f | %.2f | %.2f | %.0f | %.0f | %.2f |\n", part[1], part[2], median(wall[key]), median(wal[key]) / 1048576, median(own[key]), busy, median(behind[key]), median(memory[key]) / 1024, median(kept[key]) / 1048576, busy / first
    }
}' "$work/streams"
echo
echo "Recovery from $((wal_bytes >> 20)) MiB of WAL:"
echo
table wall ratio
