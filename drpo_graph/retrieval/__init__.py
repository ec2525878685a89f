"""Find ICL examples for a query by embeddings."""
