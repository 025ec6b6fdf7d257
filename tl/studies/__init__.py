"""Built on trainer and exporter: reports of runs, and studies of many runs."""
