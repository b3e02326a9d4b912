# kproxylat: `make demo` measures, `make test` tests. Both install what they need, and can be repeated.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the lab, the traffic, the tracing and the virtual machine take, on Debian.
PACKAGES := bpftrace busybox-static conntrack iproute2 iptables kmod linux-image-amd64 nfacct nftables procps \
	python3-venv qemu-system-x86 util-linux

.PHONY: help demo test check setup packages clean
help:
	@echo "make demo   what a Service lookup costs: 3 backends x 10, 100, 1,000 Services (up to 10 minutes)"
	@echo "make test   every test, those on a real kernel included (up to 25 minutes)"
	@echo "make check  the quick part of it: ruff, mypy, and the tests without a kernel"
	@echo "make clean  remove what these made"

demo: setup
	$(BIN)/kproxylat sweep --lab --vm-if-needed --clock instructions --services 10,100,1000

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	KPROXYLAT_REQUIRE=vm $(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --ignore=tests/vm

setup: packages $(VENV)/ready

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

packages:
	@missing=(); \
	for each in $(PACKAGES); do \
		[[ $$(dpkg-query --show --showformat='$${db:Status-Status}' $$each 2>/dev/null) == installed ]] || missing+=($$each); \
	done; \
	if (($${#missing[@]} == 0)); then exit 0; fi; \
	if ((EUID != 0)); then \
		echo "Packages are missing. As root, run first:" >&2; \
		echo "  apt-get update && apt-get install --no-install-recommends $${missing[*]}" >&2; \
		exit 1; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update --quiet=2; \
	apt-get install --yes --quiet=2 --no-install-recommends $${missing[*]}

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
