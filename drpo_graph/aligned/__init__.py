"""Use what was found: a chat model behind an optimised system prompt and retrieved ICL examples."""
