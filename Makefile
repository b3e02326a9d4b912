# kproxylat: `make demo` measures, `make test` tests. Both install what they need, and can be repeated.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the lab, the traffic, the tracing and the virtual machine take, on Debian.
PACKAGES := bpftrace busybox-static conntrack hping3 iproute2 ipset iptables ipvsadm kmod linux-image-amd64 nfacct nftables \
	procps python3-venv qemu-system-x86 util-linux
# Two thirds of the time that tests without a kernel take: beside the rest of them.
SLOW := $(addprefix tests/test_,bpftrace.py compare.py dummies.py faults.py)

.PHONY: help demo test test-long matrix pytest-counting pytest-timing pytest-slow pytest-quick check setup packages clean
help:
	@echo "make demo   what a Service lookup costs: 3 backends x 10, 100, 1,000 Services (up to 10 minutes)"
	@echo "make test   the tests, on a real kernel, too (up to 25 minutes)"
	@echo "make test-long  more of them on a real kernel, other random texts (an hour and more)"
	@echo "make matrix  exact costs on 3 kernels by 2 versions of bpftrace, against bench/golden.json (an hour; 2 GB; root)"
	@echo "make check  the quick part of it: ruff, mypy, and the tests without a kernel"
	@echo "make clean  remove what these made"

demo: setup
	$(BIN)/kproxylat sweep --lab --vm-if-needed --clock instructions --mode iptables,nftables --services 10,100,1000

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --jobs=2 --keep-going --output-sync=line --no-print-directory pytest-counting pytest-timing pytest-slow pytest-quick

pytest-counting pytest-timing pytest-slow pytest-quick: export KPROXYLAT_REQUIRE := vm
pytest-counting:
	$(BIN)/python -m pytest -m "counting and not long"
pytest-timing:
	$(BIN)/python -m pytest -m "not counting and not long" tests/vm
pytest-slow:
	$(BIN)/python -m pytest $(SLOW)
pytest-quick:
	$(BIN)/python -m pytest --ignore=tests/vm $(addprefix --ignore=,$(SLOW))

test-long: setup
	$(BIN)/python -m pytest --hypothesis-profile=default $$(grep --files-with-matches '^from hypothesis' tests/test_*.py)
	KPROXYLAT_REQUIRE=vm $(BIN)/python -m pytest -m long

matrix: PACKAGES += debian-archive-keyring debootstrap
matrix: setup
	$(BIN)/python bench/matrix.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --ignore=tests/vm

# Bytecode, as pip writes it for all but what is installed to be edited, even where Python itself is told to write none.
setup: packages $(VENV)/ready
	@$(BIN)/python -m compileall -q kproxylat

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
	rm -rf --one-file-system $(VENV) kproxylat/__pycache__ .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
