"""Write results: tables, rows, and the ledger of an interrupted job."""
