"""The operations: a folder each, and beside them the reference that specifies them all."""
