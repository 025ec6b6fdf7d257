"""Pages that a person looks at: one HTML file for a run, which needs nothing else."""
