"""The search's rules and what a run carries: pure where it decides."""
