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
# shellcheck source=scripts/bench-lib.sh
. scripts/bench-lib.sh

gb=1 jobs=2 runs=1 backups=10000 keep=
options "gb jobs runs backups keep!" "$@"
open_bench
garage=$cache/garage/bin/garage
[ -x "$garage" ] || die "Garage is missing; run scripts/setup.sh test"
store= service=
stop_more() {
    [ -z "$service" ] || kill "$service" 2>/dev/null || true
    [ -z "$store" ] || kill "$store" 2>/dev/null || true
}

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

mkdir "$work/local" "$work/many" "$work/none"
start_server 5498 shared_buffers=512MB
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

# compare GROUP NAME BUCKET DIRECTORY VERB…
compare() {
    measure "$1" "$2" - env S3_BUCKET="$3" BACKUP_DIR="$4" DB_HOST="$PGHOST" DB_PORT="$PGPORT" DB_USER=postgres BACKUP_JOBS="$jobs" PGARK_PG_BIN="$bin" \
        PGARK_STATE_DIR="$work/state" BACKUP_RETENTION_DAYS=36500 "$pgark" "${@:5}"
}
until grep -q 'default bucket' "$work/garage.log"; do sleep 0.2; done
for _ in $(seq "$runs"); do
    for codec in zstd gzip; do
        export BACKUP_COMPRESSION=$codec
        compare "$codec" "to disk" '' "$work/local" --quiet backup --no-prune --database bench
        rm -rf "$work/local" && mkdir "$work/local"
        S3_PREFIX=dumps/ compare "$codec" "straight to S3" bench none --quiet backup --no-prune --database bench
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
compare many "a tiny dump" '' "$work/many" --quiet backup --no-prune --database tiny
id=$(awk '/^backup_tiny_/ { print $1; exit }' "$work/out.log")
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
compare many "replicate of $backups, once" bench "$work/many" --quiet replicate
for place in local s3; do
    compare many "list of $place" bench "$work/many" list --store "$place"
    [ "$(wc -l <"$work/out.log")" -ge "$backups" ] || { say "only $(wc -l <"$work/out.log") lines"; exit 1; }
    compare many "prune --dry-run of $place" bench "$work/many" prune --dry-run --store "$place"
    DB_NAME=tiny compare many "status of $place" bench "$work/many" status --store "$place"
done

echo
echo "$(machine), Garage on the same machine, $gb GB, $jobs jobs, $runs run(s); medians."
echo
plain=many table wall memory requests ratio
echo
echo "serve, idle: $((idle_rss / 1024)) MiB resident, $idle_cpu ticks of $(getconf CLK_TCK) a second in 20 s."
