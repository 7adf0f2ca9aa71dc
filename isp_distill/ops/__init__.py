"""The operations: one file each, and the reference that specifies them all."""
