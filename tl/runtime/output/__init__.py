"""Where results go: tables, rows, the ledger of an interrupted job."""
