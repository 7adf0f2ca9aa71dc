"""Packed folders: decoded once, mapped into memory, with the teacher's logits if wanted."""
