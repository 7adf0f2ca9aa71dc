"""The ISP in one call."""
