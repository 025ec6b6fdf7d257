"""Reports of runs, and studies of many runs. Built on the trainer and exporter."""
