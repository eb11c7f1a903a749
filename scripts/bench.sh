#!/usr/bin/env bash
# pgark and its peers on the same data, in one run, in ratios.
#
# Usage: scripts/bench.sh [--gb N] [--jobs N] [--runs N] [--shape mixed|one] [--dumps] [--keep]
#
# A server of its own on a Unix socket, a generated database (wide rows, narrow rows, JSON with
# a GIN index, big text; with --shape one a single table is 95 % of it), then each contestant in turn, RUNS times, medians quoted. Seconds
# depend on the machine and on what else it does: only ratios of one run mean something.
# "cpu" is the whole machine's busy time, so it counts the server too; "memory" is the largest
# resident size of the contestant's biggest process.
set -euo pipefail
cd "$(dirname "$0")/.."

gb=2 jobs=2 runs=1 shape=mixed dumps= keep=
while [ $# -gt 0 ]; do
    case $1 in
        --gb) gb=$2; shift 2 ;;
        --jobs) jobs=$2; shift 2 ;;
        --runs) runs=$2; shift 2 ;;
        --shape) shape=$2; shift 2 ;;
        --dumps) dumps=1; shift ;; # parallel dumps alone: no old pipeline, no restore
        --keep) keep=1; shift ;;
        *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done

case $shape in
    mixed) few=$gb wide=$gb ;;
    one) few=$(awk "BEGIN { print $gb * 0.067 }") wide=$(awk "BEGIN { print $gb * 3.8 }") ;;
    *) echo "bench: no shape $shape; there are mixed and one" >&2; exit 2 ;;
esac

cache=$(scripts/setup.sh cache)
pgark=${PGARK:-${CARGO_TARGET_DIR:-target}/release/pgark}
bin=
for dir in "$cache"/pg/*/usr/lib/postgresql/17/bin /usr/lib/postgresql/17/bin /usr/lib/postgresql/*/bin; do
    if [ -x "$dir/postgres" ] && [ -x "$dir/pg_dump" ]; then bin=$dir; break; fi
done
[ -n "$bin" ] || { echo "bench: no PostgreSQL server programs; run scripts/setup.sh bench" >&2; exit 1; }
[ -x "$pgark" ] || { echo "bench: $pgark is missing; run cargo build --release" >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/pgark-bench-XXXXXX")
chmod 755 "$work"
as_server() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi; }
finish() {
    as_server "$bin/pg_ctl" -D "$work/pg/data" -m immediate stop >/dev/null 2>&1 || true
    [ -n "$keep" ] && echo "bench: kept $work" >&2 || rm -rf "$work"
}
trap finish EXIT

mkdir "$work/pg" "$work/out"
[ "$(id -u)" = 0 ] && chown postgres "$work/pg"
export PGHOST=$work/pg PGPORT=5499 PGUSER=postgres
as_server "$bin/initdb" -D "$work/pg/data" -U postgres -A trust -E UTF8 --locale=C >/dev/null
as_server "$bin/pg_ctl" -D "$work/pg/data" -l "$work/pg/log" -w -o "-k $work/pg -p $PGPORT -c listen_addresses='' \
    -c shared_buffers=1GB -c maintenance_work_mem=256MB -c max_wal_size=8GB -c checkpoint_timeout=30min \
    -c autovacuum=off -c max_parallel_maintenance_workers=$jobs" start >/dev/null
psql() { "$bin/psql" -X -q -v ON_ERROR_STOP=1 "$@"; }

echo "bench: making $gb GB of data …" >&2
# Counts per GB of table data, about a quarter for each shape.
psql -d postgres -c 'CREATE DATABASE bench TEMPLATE template0'
psql -d bench -v n="$few" -v w="$wide" <<'SQL'
SET synchronous_commit = off;
SELECT setseed(0.42) \g /dev/null
CREATE TABLE narrow (id bigint PRIMARY KEY, k integer NOT NULL, v double precision, at timestamptz NOT NULL);
INSERT INTO narrow SELECT i, (random() * 1e6)::int, random() * 1000, timestamptz '2025-01-01' + i * interval '7 seconds'
  FROM generate_series(1, (4000000 * :n)::int) i;
CREATE INDEX ON narrow (k);
CREATE TABLE wide (id bigint PRIMARY KEY, name text, mail text, city text, a int, b int, c numeric(12,2), d numeric(12,2),
  e date, f timestamptz, g boolean, h uuid, note text, parent bigint);
INSERT INTO wide SELECT i, 'Customer ' || (random() * 1e7)::int, 'user' || i || '@example' || (i % 300) || '.com',
    (array['Zürich','Bern','Lausanne','Genève','Basel','Lugano'])[1 + i % 6], (random() * 1e9)::int, i % 1000,
    (random() * 1e6)::numeric(12,2), (random() * 100)::numeric(12,2), date '2020-01-01' + (i % 2000)::int,
    timestamptz '2025-01-01' + random() * interval '300 days', i % 3 = 0, gen_random_uuid(),
    repeat(substr(md5(i::text), 1, 8) || ' lorem ipsum ', 1 + (i % 5)::int), 1 + (random() * (i - 1))::bigint
  FROM generate_series(1, (900000 * :w)::int) i;
CREATE INDEX ON wide (mail);
CREATE INDEX ON wide (city, e);
CREATE TABLE event (id bigint PRIMARY KEY, wide_id bigint NOT NULL, payload jsonb NOT NULL);
INSERT INTO event SELECT i, 1 + (random() * (900000 * :w - 1))::bigint, jsonb_build_object('type', (array['view','click','buy','sign-in','error'])[1 + i % 5],
    'at', timestamptz '2025-01-01' + i * interval '3 seconds', 'tags', jsonb_build_array('t' || (random() * 200)::int, 't' || (random() * 50)::int),
    'amount', (random() * 1e4)::numeric(10,2), 'session', md5((i / 7)::text), 'agent', jsonb_build_object('os', i % 7, 'browser', 'b' || i % 13))
  FROM generate_series(1, (700000 * :n)::int) i;
CREATE INDEX ON event USING gin (payload jsonb_path_ops);
CREATE TABLE article (id bigint PRIMARY KEY, title text NOT NULL, body text NOT NULL);
INSERT INTO article SELECT i, 'Title ' || i, (SELECT string_agg(w, ' ') FROM (SELECT (array['backup','restore','the','of','and','server',
    'database','table','row','write','ahead','log','time','line','second','minute','hour','disk','fails','works'])[1 + (random() * 19)::int]
    || CASE WHEN random() < 0.2 THEN (random() * 99999)::int::text ELSE '' END AS w FROM generate_series(1, 400 + (i % 400)::int)) s)
  FROM generate_series(1, (55000 * :n)::int) i;
ALTER TABLE event ADD FOREIGN KEY (wide_id) REFERENCES wide;
VACUUM ANALYZE;
CHECKPOINT;
SQL
psql -At -d bench -c "SELECT 'bench: database of ' || pg_size_pretty(pg_database_size('bench')) || ', tables ' || pg_size_pretty(sum(pg_table_size(oid))) FROM pg_class WHERE relkind = 'r' AND oid >= 16384" >&2

ticks() { awk '/^cpu /{print $2+$3+$4+$7+$8}' /proc/stat; }
results=$work/results
: >"$results"
# measure GROUP NAME SIZE-PATH COMMAND… : one line "group<TAB>name<TAB>wall<TAB>cpu<TAB>rss kB<TAB>bytes"
measure() {
    local group=$1 name=$2 path=$3 t0 t1 c0 c1 bytes rss
    shift 3
    psql -d postgres -c CHECKPOINT
    sync
    c0=$(ticks) t0=$(date +%s.%N)
    /usr/bin/time -f %M -o "$work/rss" "$@" >"$work/log" 2>&1 || { echo "bench: $name failed:" >&2; tail -5 "$work/log" >&2; exit 1; }
    t1=$(date +%s.%N) c1=$(ticks)
    rss=$(tail -1 "$work/rss")
    bytes=0
    [ "$path" = - ] || bytes=$(du -sb "$path" | cut -f1)
    awk -v g="$group" -v n="$name" -v t0="$t0" -v t1="$t1" -v c="$((c1 - c0))" -v hz="$(getconf CLK_TCK)" -v r="$rss" -v b="$bytes" \
        'BEGIN { printf "%s\t%s\t%.2f\t%.2f\t%d\t%d\n", g, n, t1 - t0, c / hz, r, b }' | tee -a "$results" |
        awk -F'\t' '{ printf "bench: %-8s %-34s %8.1f s\n", $1, $2, $3 }' >&2
}

out=$work/out
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

for _ in $(seq "$runs"); do
    [ -n "$dumps" ] || measure dump 'pg_dump | gzip; sha256sum' "$out/old.sql.gz" \
        bash -c '"$bin/pg_dump" -d bench | gzip >"$out/old.sql.gz" && sha256sum "$out/old.sql.gz"'
    rm -rf "$out/fd"
    measure dump "pg_dump -Fd -j$jobs -Z1" "$out/fd" "$bin/pg_dump" -Fd -j"$jobs" -Z1 -d bench -f "$out/fd"
    if "$bin/pg_dump" --help | grep -q 'METHOD\[:DETAIL\]'; then
        rm -rf "$out/fdz"
        measure dump "pg_dump -Fd -j$jobs zstd:3" "$out/fdz" "$bin/pg_dump" -Fd -j"$jobs" --compress=zstd:3 -d bench -f "$out/fdz"
        rm -rf "$out/fdz"
    fi
    run_pgark zstd "$recipient"
    run_pgark zstd
    run_pgark gzip "$recipient"
    run_pgark gzip
    measure dump "COPY to nothing, $jobs connections" - bash -c '
        for half in "SELECT * FROM narrow" "SELECT * FROM wide" "SELECT * FROM event" "SELECT * FROM article"; do echo "$half"; done |
        xargs -P "$jobs" -I{} "$bin/psql" -X -q -d bench -c "COPY ({}) TO STDOUT" -o /dev/null'
    [ -z "$dumps" ] || continue
    fresh
    measure restore 'gunzip | psql' - bash -c "$create"' && gunzip -c "$out/old.sql.gz" | "$bin/psql" -X -q -v ON_ERROR_STOP=1 -d target >/dev/null && "$bin/psql" -X -q -d target -c ANALYZE'
    fresh
    measure restore "pg_restore -j$jobs" - bash -c "$create"' && "$bin/pg_restore" -j"$jobs" -d target "$out/fd" && "$bin/psql" -X -q -d target -c ANALYZE'
    fresh
    measure restore "pgark restore -j$jobs" - env DB_HOST="$PGHOST" DB_PORT="$PGPORT" DB_USER=postgres BACKUP_DIR="$out/pgark" \
        PGARK_PG_BIN="$bin" "$pgark" --quiet restore latest --jobs "$jobs" --into target
    psql -At -d target -c 'SELECT count(*) FROM event' >/dev/null
    psql -d postgres -c 'DROP DATABASE target WITH (FORCE)'
done

echo
echo "$(nproc) cores, PostgreSQL $("$bin/postgres" --version | awk '{print $3}'), $gb GB ($shape), $jobs jobs, $runs run(s); medians. Every restore includes ANALYZE."
echo
awk -F'\t' '
    function median(list,   n, i, j, t, a) { n = split(list, a, " "); for (i = 2; i <= n; i++) for (j = i; j > 1 && a[j-1]+0 > a[j]+0; j--) { t = a[j]; a[j] = a[j-1]; a[j-1] = t } return a[int((n + 1) / 2)] }
    { key = $1 FS $2; if (!(key in wall)) order[++count] = key; wall[key] = wall[key] " " $3; cpu[key] = cpu[key] " " $4; rss[key] = rss[key] " " $5; size[key] = $6 }
    END {
        print "| | wall s | cpu s | memory MiB | size MiB | wall ratio to the first |"
        print "| --- | --- | --- | --- | --- | --- |"
        for (i = 1; i <= count; i++) {
            key = order[i]; split(key, part, FS); w = median(wall[key])
            if (part[1] != group) { group = part[1]; base = w }
            printf "| %s: %s | %.1f | %.1f | %.0f | %s | %.2f |\n", part[1], part[2], w, median(cpu[key]), median(rss[key]) / 1024, size[key] ? sprintf("%.0f", size[key] / 1048576) : "", w / base
        }
    }' "$results"
