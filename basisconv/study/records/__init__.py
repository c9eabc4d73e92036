"""Runs, records, and the stores that keep them unchanged."""
