"""This machine: processes, signals, trust, kernel, types (BTF), files, virtual machines."""
