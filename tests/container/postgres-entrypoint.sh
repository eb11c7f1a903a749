#!/bin/sh
# As the official image: makes the cluster from POSTGRES_USER, POSTGRES_PASSWORD (or their _FILE)
# and POSTGRES_DB on the first start, then runs the server.
set -eu
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
user=${POSTGRES_USER:-$(cat "$POSTGRES_USER_FILE")}
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    chown postgres "$PGDATA" && chmod 700 "$PGDATA"
    password=/dev/shm/password
    (umask 077 && printf '%s' "${POSTGRES_PASSWORD:-$(cat "$POSTGRES_PASSWORD_FILE")}" >"$password")
    chown postgres "$password"
    as_postgres initdb -U "$user" --pwfile="$password" --auth-local=trust --auth-host=scram-sha-256 -E UTF8 --locale=C.UTF-8 --no-sync
    rm "$password"
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    as_postgres pg_ctl -w -o "-c listen_addresses=''" start
    [ "$POSTGRES_DB" = postgres ] || as_postgres createdb -U "$user" "$POSTGRES_DB"
    as_postgres pg_ctl -w -m fast stop
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups postgres -c listen_addresses='*' -c fsync=off
