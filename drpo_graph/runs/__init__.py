"""Runs from outside: started, resumed, forked, decided about, and written down."""
