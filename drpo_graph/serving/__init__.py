"""vLLM as a process of ours: its arguments, its start, its end, and what its log says when it fails."""
