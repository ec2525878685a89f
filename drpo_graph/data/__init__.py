"""Datasets: read from files, put in order; and the bundled queries and ICL examples."""
