"""Optimised prompts by model name, with where they come from."""
