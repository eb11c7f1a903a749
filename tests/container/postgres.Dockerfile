# PostgreSQL for tests/container.rs: the distribution's server behind as much of the official
# image's interface as docker-compose.prod.yml uses. No image can be pulled where the tests run.
ARG BASE
FROM ${BASE}
RUN apt-get update -q \
 && apt-get install -q -y --no-install-recommends postgresql-common \
 && sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf \
 && apt-get install -q -y --no-install-recommends postgresql \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb \
 && ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/ 2>/dev/null; command -v postgres
ENV PGDATA=/var/lib/postgresql/data
COPY postgres-entrypoint.sh /usr/local/bin/
VOLUME /var/lib/postgresql/data
EXPOSE 5432
STOPSIGNAL SIGINT
ENTRYPOINT ["sh", "/usr/local/bin/postgres-entrypoint.sh"]
