"""Which layers of a trained network get basis filters, and how many: `basisconv.search`."""
