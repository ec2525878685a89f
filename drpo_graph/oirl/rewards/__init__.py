"""Reward models: how likely a prompt is to bring the right answer to a query."""
