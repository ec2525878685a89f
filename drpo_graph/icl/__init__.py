"""Optimise ICL examples: a second graph on the same ledger, budget, events and displays."""
