"""What a run tells while it runs: the events, who gets them, and the files that keep them."""
