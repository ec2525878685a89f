"""The tables of the paper and what it leaves out: how well prompts are chosen, how surely, and what that is worth."""
