"""A student as a file that runs where this library is not."""
