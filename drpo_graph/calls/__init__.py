"""Calls to models: asked, limited, counted, kept in the ledger, climbed from rung to rung."""
