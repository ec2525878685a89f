"""``drpo oirl``: one module per command."""
