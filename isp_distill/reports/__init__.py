"""What is measured and drawn of a student."""
