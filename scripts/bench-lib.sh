# What the benchmarks share: arguments, programs, a server of their own, data, measuring, the table.
# Sourced by scripts/bench*.sh; the head of each says what it measures. The first comment block of
# the script is its usage.
#
# Only ratios of one run mean something: seconds depend on the machine and on what else it does, so
# contestants take turns, and each table has the machine's load beside it.
# shellcheck shell=bash

say() { echo "bench: $*" >&2; }
die() { say "$*"; exit 1; }

# options "NAME… SWITCH!…" ARGUMENT…: `--NAME VALUE` sets $NAME, `--SWITCH` sets $SWITCH to 1.
options() {
    local known=" $1 " name
    shift
    while [ $# -gt 0 ]; do
        name=${1#--}
        case "$1 $known" in
            --*" $name! "*) printf -v "$name" 1; shift ;;
            --*" $name "*) [ $# -gt 1 ] || usage; printf -v "$name" %s "$2"; shift 2 ;;
            *) usage ;;
        esac
    done
}
usage() {
    awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0" >&2
    exit 2
}

# Sets $cache, $pgark, $bin (a server's programs, 17's where there is one) and $major, and opens $work.
open_bench() {
    cache=$(scripts/setup.sh cache)
    pgark=${PGARK:-${CARGO_TARGET_DIR:-target}/release/pgark}
    bin=
    local dir
    for dir in "$cache"/pg/*/usr/lib/postgresql/17/bin /usr/lib/postgresql/17/bin /usr/lib/postgresql/*/bin; do
        if [ -x "$dir/postgres" ] && [ -x "$dir/pg_dump" ]; then bin=$dir; break; fi
    done
    [ -n "$bin" ] || die "no PostgreSQL server programs; run scripts/setup.sh bench"
    [ -x "$pgark" ] || die "$pgark is missing; run cargo build --release"
    major=$("$bin/postgres" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
    work=$(mktemp -d "${TMPDIR:-/tmp}/pgark-bench-XXXXXX")
    chmod 755 "$work"
    results=$work/results
    : >"$results"
    trap finish EXIT
}
# A script with more to end has a function `stop_more`.
finish() {
    if declare -F stop_more >/dev/null; then stop_more || true; fi
    [ ! -d "$work/pg" ] || as_server "$bin/pg_ctl" -D "$work/pg/data" -m immediate stop >/dev/null 2>&1 || true
    wait
    if [ -n "${keep:-}" ]; then say "kept $work"; else rm -rf "$work"; fi
}
# PostgreSQL refuses to run as root.
as_server() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi; }
give_to_server() { [ "$(id -u)" != 0 ] || chown postgres "$@"; }

# start_server PORT SETTING…: a server on a Unix socket in $work/pg.
start_server() {
    export PGHOST=$work/pg PGPORT=$1 PGUSER=postgres
    shift
    local settings=
    for setting in listen_addresses="''" max_wal_size=8GB checkpoint_timeout=30min autovacuum=off "$@"; do settings+=" -c $setting"; done
    mkdir "$work/pg"
    give_to_server "$work/pg"
    as_server "$bin/initdb" -D "$work/pg/data" -U postgres -A trust -E UTF8 --locale=C >/dev/null
    as_server "$bin/pg_ctl" -D "$work/pg/data" -l "$work/pg/log" -w -o "-k $work/pg -p $PGPORT$settings" start >/dev/null
}
psql() { "$bin/psql" -X -q -v ON_ERROR_STOP=1 "$@"; }

# make_tables FEW WIDE: the database bench: wide rows, narrow rows, JSON with a GIN index, big text, about a
# quarter each where both are the number of GB; FEW less and WIDE more make one table most of it.
make_tables() {
    psql -d postgres -c 'CREATE DATABASE bench TEMPLATE template0'
    psql -d bench -v n="$1" -v w="$2" <<'SQL'
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
    say "$(psql -At -d bench -c "SELECT 'database of ' || pg_size_pretty(pg_database_size('bench')) || ', tables ' || pg_size_pretty(sum(pg_table_size(oid))) FROM pg_class WHERE relkind = 'r' AND oid >= 16384")"
}

# What the server has used, in ticks: its processes, and those that it has seen end. Not the machine's busy time:
# neighbours would be in it.
server_ticks() {
    local main
    main=$(head -n 1 "$work/pg/data/postmaster.pid")
    # A session may outlive its client by a moment.
    until [ "$(psql -At -d postgres -c "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid()")" = 0 ]; do sleep 0.05; done
    { cat /proc/[0-9]*/stat 2>/dev/null || true; } | sed 's/^\([0-9]*\) (.*) /\1 /' | awk -v main="$main" '$1 == main || $3 == main { sum += $13 + $14 + $15 + $16 } END { print sum + 0 }'
}
# A script whose contestants make requests counts them here.
requests() { echo 0; }
# measure GROUP NAME PATH COMMAND…: one line of $results: group, name, wall s, cpu s of command and server, the command's own
# cpu s (its children's that it waited for too), resident kB of its largest process, bytes of PATH (- for none), requests.
measure() {
    local group=$1 name=$2 path=$3 t0 t1 c0 c1 q0 bytes=0
    shift 3
    psql -d postgres -c CHECKPOINT
    sync
    q0=$(requests) c0=$(server_ticks) t0=$(date +%s.%N)
    /usr/bin/time -f '%M %U %S' -o "$work/used" "$@" >"$work/out.log" 2>"$work/err.log" || { say "$name failed:"; tail -n 5 "$work/out.log" "$work/err.log" >&2; exit 1; }
    t1=$(date +%s.%N)
    c1=$(server_ticks)
    [ "$path" = - ] || bytes=$(du -sb "$path" | cut -f1)
    tail -1 "$work/used" | awk -v g="$group" -v n="$name" -v t0="$t0" -v t1="$t1" -v c="$((c1 - c0))" -v hz="$(getconf CLK_TCK)" -v b="$bytes" -v q="$(($(requests) - q0))" \
        '{ printf "%s\t%s\t%.2f\t%.2f\t%.2f\t%d\t%d\t%d\n", g, n, t1 - t0, c / hz + $2 + $3, $2 + $3, $1, b, q }' | tee -a "$results" |
        awk -F'\t' '{ printf "bench: %-8s %-44s %8.2f s\n", $1, $2, $3 }' >&2
}
# table COLUMN…: medians of $results as markdown: wall, cpu, own, memory, size, requests, ratio, cpu-ratio. Ratios are to
# the group's first line; the group named $plain has none.
table() {
    awk -F'\t' -v columns="$*" -v plain="${plain:-}" '
    function median(list,   n, i, j, t, a) { n = split(list, a, " "); for (i = 2; i <= n; i++) for (j = i; j > 1 && a[j-1]+0 > a[j]+0; j--) { t = a[j]; a[j] = a[j-1]; a[j-1] = t } return a[int((n + 1) / 2)] }
    BEGIN {
        count = split(columns, column, " ")
        title["wall"] = "wall s"; title["cpu"] = "cpu s"; title["own"] = "own cpu s"; title["memory"] = "memory MiB"; title["size"] = "size MiB"
        title["requests"] = "requests to S3"; title["ratio"] = "wall ratio to the first"; title["cpu-ratio"] = "cpu ratio"
    }
    { key = $1 FS $2; if (!(key in wall)) { if (!($1 in members)) groups[++group_count] = $1; member[$1, ++members[$1]] = key }
      wall[key] = wall[key] " " $3; cpu[key] = cpu[key] " " $4; own[key] = own[key] " " $5; memory[key] = memory[key] " " $6; size[key] = $7; asked[key] = $8 }
    END {
        head = "| |"; rule = "| --- |"
        for (c = 1; c <= count; c++) { head = head " " title[column[c]] " |"; rule = rule " --- |" }
        print head; print rule
        for (g = 1; g <= group_count; g++) for (i = 1; i <= members[groups[g]]; i++) order[++rows] = member[groups[g], i]
        for (i = 1; i <= rows; i++) {
            key = order[i]; split(key, part, FS); w = median(wall[key]); busy = median(cpu[key])
            if (part[1] != group) { group = part[1]; first = w; first_busy = busy }
            cell["wall"] = sprintf("%.2f", w); cell["cpu"] = sprintf("%.1f", busy); cell["own"] = sprintf("%.1f", median(own[key]))
            cell["memory"] = sprintf("%.0f", median(memory[key]) / 1024); cell["size"] = size[key] ? sprintf(size[key] < 1e7 ? "%.1f" : "%.0f", size[key] / 1048576) : ""
            cell["requests"] = asked[key]; cell["ratio"] = first > 0 ? sprintf("%.2f", w / first) : ""; cell["cpu-ratio"] = first_busy > 0 ? sprintf("%.2f", busy / first_busy) : ""
            if (part[1] == plain) cell["ratio"] = cell["cpu-ratio"] = ""
            gsub(/\|/, "\\|", part[2])
            line = "| " part[1] ": " part[2] " |"
            for (c = 1; c <= count; c++) line = line " " cell[column[c]] " |"
            print line
        }
    }' "$results"
}
machine() { echo "$(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg | tr ' ' '/') at the end, PostgreSQL $("$bin/postgres" --version | awk '{print $3}')"; }
