"""Alignment inside agents: middleware, a tool that optimises, prompts that change while an agent is served."""
