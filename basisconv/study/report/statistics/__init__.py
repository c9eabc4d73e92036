"""Intervals, tests and models: all that a table or a verdict rests on."""
