"""One measurement: options, plan, stage, run, accounting."""
