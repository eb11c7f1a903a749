# The image of pgark: `docker build -t agentic-backup-prod .`
#
# Builds with BuildKit and with the classic builder. The classic one builds every stage up to the
# one that is asked for, so the stages stand in this order:
#   runtime    everything but the program
#   prebuilt   with a program that lies in the build context (docker build --target prebuilt):
#              for machines that cannot pull the Rust image, and for the tests
#   build      the program from source
#   (last)     runtime with that program
#
# Arguments:
#   PG_CLIENTS  majors whose client programs come from PGDG (apt.postgresql.org), as
#               "14 15 16 17 18"; empty: the distribution's one. pg_dump must be as new as the server.
#   PG_SERVERS  the same for server programs (`pgark demo`, drills); empty: none;
#               "distribution": the distribution's one.
#   BASE, RUST  the images to begin with.
#   PGDG        where PGDG's packages are.
#   BINARY      for `prebuilt`: the program's path in the context.
# Proxies are predefined arguments (--build-arg http_proxy=…). A mirror of Debian's archive is
# what BASE says in its /etc/apt.
ARG BASE=debian:bookworm-slim
ARG RUST=rust:1-bookworm

FROM ${BASE} AS runtime
ARG PG_CLIENTS=
ARG PG_SERVERS=
ARG PGDG=https://apt.postgresql.org/pub/repos/apt
COPY docker/install-packages.sh /tmp/
RUN sh /tmp/install-packages.sh && rm /tmp/install-packages.sh
# The owner of new backup directories; a directory that has an owner keeps it (PGARK_RUN_AS).
RUN groupadd --gid 10001 pgark \
 && useradd --uid 10001 --gid 10001 --home-dir /home/pgark --create-home --shell /usr/sbin/nologin pgark \
 && chmod 755 /home/pgark \
 && mkdir -p /backups /var/log/cron /etc/crontabs \
 && ln -s /dev/shm/pgark/backup-cron.log /var/log/cron/backup-cron.log \
 && ln -s /dev/shm/pgark/crontab /etc/crontabs/root
COPY docker/backup.sh /usr/local/bin/backup.sh
RUN chmod 755 /usr/local/bin/backup.sh
# /dev/shm is writable in every container, also with a read-only root and with any user.
ENV HOME=/home/pgark \
    LC_ALL=C.UTF-8 \
    BACKUP_DIR=/backups \
    HTTP_ADDR=:8080 \
    PGARK_RUN_AS=owner \
    PGARK_LOG_PATH=/dev/shm/pgark/backup-cron.log \
    PGARK_CRONTAB_PATH=/dev/shm/pgark/crontab
EXPOSE 8080
# Cheap: the service answers from what it keeps. A first dump may take long; it is not ill before.
HEALTHCHECK --interval=60s --timeout=15s --start-period=30m --retries=3 CMD ["pgark", "status", "--probe"]
# No entry point: `docker run IMAGE /usr/local/bin/backup.sh` runs just that. There is no USER
# either: pgark reads the secrets as root and hands its work to the owner of BACKUP_DIR.
CMD ["pgark", "serve"]

FROM runtime AS prebuilt
ARG BINARY=pgark
COPY ${BINARY} /usr/local/bin/pgark

FROM ${RUST} AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src ./src
# Cargo wants to see the test that Cargo.toml names.
RUN mkdir tests && touch tests/main.rs && cargo build --release --locked --bin pgark

FROM runtime
COPY --from=build /src/target/release/pgark /usr/local/bin/pgark
