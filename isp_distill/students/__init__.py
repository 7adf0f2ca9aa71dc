"""A student outside of training: saved, loaded, and run on files."""
