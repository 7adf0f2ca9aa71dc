"""train(), its loop, and what a run leaves."""
