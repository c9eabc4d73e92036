"""Trained networks made faster, by this package and by what people would take instead."""
