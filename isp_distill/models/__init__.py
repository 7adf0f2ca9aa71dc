"""Teachers, students, and what turns the one into the other."""
