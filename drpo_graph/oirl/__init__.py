"""Prompt-OIRL: the right prompt for each query, learned from logs, without asking a model."""
