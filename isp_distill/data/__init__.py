"""From folders and datasets to batches of views."""
