"""GET /energy/*: what the ledger and the open requests say, as JSON."""
