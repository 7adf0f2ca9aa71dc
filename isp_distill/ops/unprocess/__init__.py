"""The ISP backwards, and short exposures."""
