"""DNG: what its tags say, and writing one."""
