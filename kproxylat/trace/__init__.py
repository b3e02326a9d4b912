"""The probe script, bpftrace, and the readers of its text."""
