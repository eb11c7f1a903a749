# Every target works from a fresh clone on a Debian-like machine with only Rust: it installs
# what is missing first, and says so (scripts/setup.sh).

export PGARK_CACHE := $(shell scripts/setup.sh cache)
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: build demo test bench lint fmt docs clean

build:
	cargo build --release

# A throwaway server, a backup, a disaster, a restore. Leaves nothing behind.
demo:
	scripts/setup.sh demo
	cargo build --release
	$(TARGET)/release/pgark demo

# The environment, the lints, and every test.
test:
	scripts/setup.sh test
	$(MAKE) lint
	@skip=$$(scripts/setup.sh skip); \
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run -- $$skip; else cargo test -- $$skip; fi

# pgark and its peers on the same data, in ratios.
bench:
	scripts/setup.sh bench
	scripts/setup.sh test
	cargo build --release
	scripts/bench.sh --runs 3 --gb 1
	for jobs in 1 4; do scripts/bench.sh --gb 1 --dumps --jobs $$jobs; done
	scripts/bench.sh --gb 1 --dumps --shape one
	scripts/bench-s3.sh
	scripts/bench-base.sh --runs 3
	scripts/bench-wal.sh --runs 3

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

fmt:
	cargo fmt

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

clean:
	cargo clean
