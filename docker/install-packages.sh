#!/bin/sh
# For the Dockerfile: what the image holds beside pgark. PG_CLIENTS, PG_SERVERS and PGDG are its
# arguments.
set -eu
export DEBIAN_FRONTEND=noninteractive
# Nobody wants a server that runs.
mkdir -p /etc/postgresql-common
echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
# What the old manual's commands use (sh, coreutils, findutils and gzip are Debian's own), and
# what TLS and time zones need.
packages="ca-certificates tzdata iputils-ping gzip findutils"
apt-get update -q
apt-get install -q -y --no-install-recommends $packages

majors="$PG_CLIENTS $PG_SERVERS"
if [ -n "$(echo "$majors" | tr -cd 0-9)" ]; then
    # PGDG's key comes signed by Debian, in the package that Debian made for this.
    (cd /tmp && apt-get download -q postgresql-common && dpkg-deb -x postgresql-common_*.deb /tmp/pgdg)
    cp "$(find /tmp/pgdg -name apt.postgresql.org.gpg -o -name apt.postgresql.org.asc | head -n 1)" /etc/apt/keyrings/
    key=$(find /etc/apt/keyrings -name 'apt.postgresql.org.*')
    . /etc/os-release
    echo "deb [signed-by=$key] $PGDG $VERSION_CODENAME-pgdg main" >/etc/apt/sources.list.d/pgdg.list
    rm -rf /tmp/pgdg /tmp/postgresql-common_*.deb
    apt-get update -q
fi
packages=
for major in $PG_CLIENTS; do packages="$packages postgresql-client-$major"; done
for major in $PG_SERVERS; do
    [ "$major" = distribution ] && packages="$packages postgresql" || packages="$packages postgresql-$major"
done
[ -n "$PG_CLIENTS" ] || packages="$packages postgresql-client"
apt-get install -q -y --no-install-recommends $packages
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
