"""Which Runs answer which question, at the size that a profile says."""
