#!/usr/bin/env bash
# A dump straight to S3 against the same dump to disk, the idle service, and ten thousand
# backups in a bucket and in a directory.
#
# Usage: scripts/bench-s3.sh [--gb N] [--jobs N] [--runs N] [--backups N] [--keep]
#
# Garage, a real object store, runs on this machine as one node, with its files on the same disk
# as the directory. Only ratios of one run mean something; the times of `list`, `prune --dry-run`
# and `status` are those of the whole program. "memory" is the largest resident size of pgark.
set -euo pipefail
cd "$(dirname "$0")/.."

gb=1 jobs=2 runs=1 backups=10000 keep=
while [ $# -gt 0 ]; do
    case $1 in
        --gb) gb=$2; shift 2 ;;
        --jobs) jobs=$2; shift 2 ;;
        --runs) runs=$2; shift 2 ;;
        --backups) backups=$2; shift 2 ;;
        --keep) keep=1; shift ;;
        *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
say() { echo "bench: $*" >&2; }

cache=$(scripts/setup.sh cache)
pgark=${PGARK:-${CARGO_TARGET_DIR:-target}/release/pgark}
garage=$cache/garage/bin/garage
bin=
for dir in "$cache"/pg/*/usr/lib/postgresql/17/bin /usr/lib/postgresql/17/bin /usr/lib/postgresql/*/bin; do
    if [ -x "$dir/postgres" ] && [ -x "$dir/pg_dump" ]; then bin=$dir; break; fi
done
[ -n "$bin" ] || { say "no PostgreSQL server programs; run scripts/setup.sh bench"; exit 1; }
[ -x "$garage" ] || { say "Garage is missing; run scripts/setup.sh test"; exit 1; }
[ -x "$pgark" ] || { say "$pgark is missing; run cargo build --release"; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/pgark-bench-XXXXXX")
chmod 755 "$work"
as_server() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi; }
store= service=
finish() {
    [ -z "$service" ] || kill "$service" 2>/dev/null || true
    as_server "$bin/pg_ctl" -D "$work/pg/data" -m immediate stop >/dev/null 2>&1 || true
    [ -z "$store" ] || kill "$store" 2>/dev/null || true
    wait
    [ -n "$keep" ] && say "kept $work" || rm -rf "$work"
}
trap finish EXIT

free_port() { for port in $(shuf -i 20000-29999 -n 50); do (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }; done; }
port=$(free_port) rpc=$(free_port)
mkdir "$work/garage"
cat >"$work/garage.toml" <<TOML
metadata_dir = "$work/garage/meta"
data_dir = "$work/garage/data"
db_engine = "sqlite"
metadata_fsync = false
data_fsync = false
compression_level = "none"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:$rpc"
rpc_public_addr = "127.0.0.1:$rpc"
rpc_secret = "1799bccfd7411eddcf9ebd316bc1f5287ad12a68094e1c6ac6abde7e6feae1ec"
[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:$port"
TOML
export AWS_ACCESS_KEY_ID=GK0123456789abcdef01234567 AWS_REGION=garage S3_ENDPOINT=http://127.0.0.1:$port
export AWS_SECRET_ACCESS_KEY=b892c0665f0ada8a4755dae98baa3b133590e11dae3bcc1f9d769d67f16c3835
RUST_LOG=garage=info GARAGE_DEFAULT_ACCESS_KEY=$AWS_ACCESS_KEY_ID GARAGE_DEFAULT_SECRET_KEY=$AWS_SECRET_ACCESS_KEY GARAGE_DEFAULT_BUCKET=bench \
    "$garage" -c "$work/garage.toml" server --single-node --default-bucket >"$work/garage.log" 2>&1 &
store=$!
requests() { grep -c 'generic_server.* /' "$work/garage.log" || true; }

mkdir "$work/pg" "$work/local" "$work/many" "$work/none"
[ "$(id -u)" = 0 ] && chown postgres "$work/pg"
export PGHOST=$work/pg PGPORT=5498 PGUSER=postgres
as_server "$bin/initdb" -D "$work/pg/data" -U postgres -A trust -E UTF8 --locale=C >/dev/null
as_server "$bin/pg_ctl" -D "$work/pg/data" -l "$work/pg/log" -w -o "-k $work/pg -p $PGPORT -c listen_addresses='' \
    -c shared_buffers=512MB -c max_wal_size=8GB -c checkpoint_timeout=30min -c autovacuum=off" start >/dev/null
psql() { "$bin/psql" -X -q -v ON_ERROR_STOP=1 "$@"; }
say "making $gb GB of data …"
psql -d postgres -c 'CREATE DATABASE bench TEMPLATE template0' -c 'CREATE DATABASE tiny TEMPLATE template0'
psql -d tiny -c 'CREATE TABLE t AS SELECT 1 AS i'
psql -d bench -v gb="$gb" <<'SQL'
SET synchronous_commit = off;
CREATE TABLE event (id bigint, at timestamptz, payload text);
INSERT INTO event SELECT i, timestamptz '2025-01-01' + i * interval '3 seconds', md5(i::text) || ' ' || repeat('lorem ipsum ', (i % 7)::int) || md5((i * 7)::text)
  FROM generate_series(1, (6500000 * :gb::numeric)::bigint) i;
VACUUM ANALYZE;
CHECKPOINT;
SQL
say "$(psql -At -d bench -c "SELECT 'table of ' || pg_size_pretty(pg_table_size('event'))")"

# timed BUCKET DIRECTORY VERB…
timed() {
    env S3_BUCKET="$1" BACKUP_DIR="$2" DB_HOST="$PGHOST" DB_PORT="$PGPORT" DB_USER=postgres BACKUP_JOBS="$jobs" PGARK_PG_BIN="$bin" \
        PGARK_STATE_DIR="$work/state" BACKUP_RETENTION_DAYS=36500 /usr/bin/time -f %M -o "$work/rss" "$pgark" "${@:3}"
}
results=$work/results
: >"$results"
# measure GROUP NAME COMMAND…: "group<TAB>name<TAB>seconds<TAB>rss kB<TAB>requests"
measure() {
    local group=$1 name=$2 t0 t1 before
    shift 2
    psql -d postgres -c CHECKPOINT
    sync
    before=$(requests) t0=$(date +%s.%N)
    "$@" >"$work/out" 2>"$work/err" || { say "$name failed:"; tail -5 "$work/err" >&2; exit 1; }
    t1=$(date +%s.%N)
    awk -v g="$group" -v n="$name" -v t0="$t0" -v t1="$t1" -v r="$(tail -1 "$work/rss")" -v q="$(($(requests) - before))" \
        'BEGIN { printf "%s\t%s\t%.2f\t%d\t%d\n", g, n, t1 - t0, r, q }' | tee -a "$results" |
        awk -F'\t' '{ printf "bench: %-8s %-44s %8.2f s\n", $1, $2, $3 }' >&2
}
until grep -q 'default bucket' "$work/garage.log"; do sleep 0.2; done
for _ in $(seq "$runs"); do
    for codec in zstd gzip; do
        export BACKUP_COMPRESSION=$codec
        measure "$codec" "to disk" timed '' "$work/local" --quiet backup --no-prune --database bench
        rm -rf "$work/local" && mkdir "$work/local"
        S3_PREFIX=dumps/ measure "$codec" "straight to S3" timed bench none --quiet backup --no-prune --database bench
    done
done
unset BACKUP_COMPRESSION

say "an idle service …"
env BACKUP_ON_START=false HTTP_ADDR=127.0.0.1:0 S3_BUCKET=bench S3_PREFIX=dumps/ BACKUP_DIR="$work/local" DB_HOST="$PGHOST" DB_PORT="$PGPORT" \
    DB_USER=postgres "$pgark" serve >"$work/serve.log" 2>&1 &
service=$!
sleep 10
jiffies() { awk '{ print $14 + $15 }' "/proc/$service/stat"; }
before=$(jiffies)
sleep 20
idle_cpu=$(($(jiffies) - before))
idle_rss=$(awk '/^VmRSS/ { print $2 }' "/proc/$service/status")
kill "$service" && wait "$service" 2>/dev/null || true
service=

say "$backups backups …"
timed '' "$work/many" --quiet backup --no-prune --database tiny >"$work/out"
id=$(awk '/^backup_tiny_/ { print $1; exit }' "$work/out")
stamp=${id#backup_tiny_}
# The same backup once for each hour before it.
perl -MDigest::SHA=sha256_hex -MPOSIX=strftime,mktime -e '
    my ($dir, $id, $count) = @ARGV;
    $ENV{TZ} = "UTC";
    my ($stamp) = $id =~ /(\d{8}_\d{6})$/;
    my @at = $stamp =~ /^(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d)$/;
    my $now = mktime($at[5], $at[4], $at[3], $at[2], $at[1] - 1, $at[0] - 1900);
    open my $in, "<", "$dir/$id.sql.gz.json" or die $!;
    local $/;
    my ($body) = <$in> =~ /^(.*),\n  "check": "[0-9a-f]{64}"\n\}\n$/s or die "no check";
    for my $hours (1 .. $count - 1) {
        my @time = gmtime($now - 3600 * $hours);
        my ($other, $moment) = (strftime("%Y%m%d_%H%M%S", @time), strftime("%Y-%m-%dT%H:%M:%SZ", @time));
        my $text = $body =~ s/\Q$stamp\E/$other/gr;
        $text =~ s/"(started_at|finished_at)": "[^"]*"/"$1": "$moment"/g;
        open my $out, ">", "$dir/backup_tiny_$other.sql.gz.json" or die $!;
        print $out $text, ",\n  \"check\": \"", sha256_hex($text), "\"\n}\n";
        close $out;
        for my $suffix ("", ".idx") {
            link "$dir/$id.sql.gz$suffix", "$dir/backup_tiny_$other.sql.gz$suffix" or die $!;
        }
    }' "$work/many" "$id" "$backups"
measure many "replicate of $backups, once" timed bench "$work/many" --quiet replicate
for place in local s3; do
    measure many "list of $place" timed bench "$work/many" list --store "$place"
    [ "$(wc -l <"$work/out")" -ge "$backups" ] || { say "only $(wc -l <"$work/out") lines"; exit 1; }
    measure many "prune --dry-run of $place" timed bench "$work/many" prune --dry-run --store "$place"
    DB_NAME=tiny measure many "status of $place" timed bench "$work/many" status --store "$place"
done

echo
echo "$(nproc) cores, PostgreSQL $("$bin/postgres" --version | awk '{print $3}'), Garage on the same machine, $gb GB, $jobs jobs, $runs run(s); medians."
echo
awk -F'\t' -v backups="$backups" '
    function median(list,   n, i, j, t, a) { n = split(list, a, " "); for (i = 2; i <= n; i++) for (j = i; j > 1 && a[j-1]+0 > a[j]+0; j--) { t = a[j]; a[j] = a[j-1]; a[j-1] = t } return a[int((n + 1) / 2)] }
    { key = $1 FS $2; if (!(key in wall)) order[++count] = key; wall[key] = wall[key] " " $3; rss[key] = rss[key] " " $4; asked[key] = $5 }
    END {
        print "| | wall s | memory MiB | requests to S3 | ratio |"
        print "| --- | --- | --- | --- | --- |"
        for (i = 1; i <= count; i++) {
            key = order[i]; split(key, part, FS); w = median(wall[key])
            if (part[1] != group) { group = part[1]; base = w }
            ratio = group == "many" ? "" : sprintf("%.2f", w / base)
            printf "| %s: %s | %.2f | %.0f | %d | %s |\n", part[1], part[2], w, median(rss[key]) / 1024, asked[key], ratio
        }
    }' "$results"
echo
echo "serve, idle: $((idle_rss / 1024)) MiB resident, $idle_cpu ticks of $(getconf CLK_TCK) a second in 20 s."
