"""What every folder may use: documents, files, locks, progress, resuming."""
