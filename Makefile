# `make demo` measures, `make test` runs the tests. Both install what they need and can be run again.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Debian packages for the lab, the traffic, the tracing, the virtual machine, and tests of OpenMetrics (prometheus).
PACKAGES := bpftrace busybox-static conntrack file hping3 iproute2 ipset iptables ipvsadm kmod linux-image-amd64 nfacct nftables \
	procps prometheus prometheus-node-exporter python3-venv qemu-system-x86 util-linux
# Two workers. Each of the two guests of tests/vm has one worker to itself, until its tests are done.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup -m

.PHONY: help demo test test-long matrix image plugin check setup packages clean
help:
	@echo "make demo       measure 3 backends in real nanoseconds, then by bpftrace (about 5 minutes on 2 cores)"
	@echo "make check      ruff, mypy, and the quick tests (under 4 minutes on 2 cores)"
	@echo "make test       ruff, mypy, and all tests but the long ones, also on a real kernel (40 minutes)"
	@echo "make test-long  long tests on a real kernel, and property tests with new random texts (an hour or more)"
	@echo "make matrix     exact costs on 5 kernels with 3 versions of bpftrace (an hour; 4 GB of disk; root)"
	@echo "make image      the image for --node as an OCI archive in dist/ (10 minutes at first; 2 GB of disk; root);"
	@echo "                with ARCHITECTURE=arm64 the one for arm64, also on x86-64 (45 minutes)"
	@echo "make plugin     the client as one file, and krew's manifest, in dist/"
	@echo "make setup      install the packages, and kproxylat in $(VENV)"
	@echo "make clean      remove what the other targets created"

demo: setup
	$(BIN)/kproxylat demo

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	deploy/image.sh root
	$(BIN)/python deploy/plugin.py
	KPROXYLAT_REQUIRE=vm,image,plugin $(PYTEST) "not long"

test-long: setup
	$(BIN)/python -m pytest --hypothesis-profile=random $$(grep --recursive --files-with-matches '^from hypothesis' tests --include='test_*.py')
	KPROXYLAT_MOMENTS=100 $(BIN)/python -m pytest -k "test_signals or test_kills" --ignore=tests/vm
	deploy/image.sh root
	KPROXYLAT_REQUIRE=image KPROXYLAT_MOMENTS=20 $(BIN)/python -m pytest -k test_ctrl_c_at_any_moment
	KPROXYLAT_REQUIRE=vm $(BIN)/python -m pytest -m long

test test-long: PACKAGES += chromium fonts-dejavu-core
test test-long: PACKAGES += debian-archive-keyring mmdebstrap
matrix test-long: PACKAGES += debian-archive-keyring debootstrap
matrix: setup
	$(BIN)/python bench/matrix.py

image: PACKAGES += buildah debian-archive-keyring mmdebstrap $(if $(ARCHITECTURE),arch-test qemu-user-static)
image: packages
	deploy/image.sh archive

plugin: setup
	$(BIN)/python deploy/plugin.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) "not long and not slow" --ignore=tests/vm

# pip compiles no bytecode for an editable install, and PYTHONDONTWRITEBYTECODE stops Python from doing it later.
setup: packages $(VENV)/ready
	@$(BIN)/python -m compileall -q kproxylat

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

packages:
	@missing=(); \
	for package in $(PACKAGES); do \
		[[ $$(dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>/dev/null) == installed ]] || missing+=($$package); \
	done; \
	if (($${#missing[@]} == 0)); then exit 0; fi; \
	if ((EUID != 0)); then \
		echo "Packages are missing. Run this first, as root:" >&2; \
		echo "  apt-get update && apt-get install --no-install-recommends $${missing[*]}" >&2; \
		exit 1; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update --quiet=2; \
	apt-get install --yes --quiet=2 --no-install-recommends $${missing[*]}

clean:
	find kproxylat -name __pycache__ -prune -exec rm -rf {} +
	rm -rf --one-file-system $(VENV) .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
