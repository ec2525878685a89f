"""The replaceable parts of a search: what each must do, and our defaults."""
