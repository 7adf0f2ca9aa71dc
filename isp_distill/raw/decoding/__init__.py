"""Decoding in processes of their own, which a damaged file may kill."""
