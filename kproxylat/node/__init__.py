"""The node under test: network, lock, counters, live rules, checks."""
