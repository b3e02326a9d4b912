"""Numbers: statistics, series, comparisons, alternatives."""
