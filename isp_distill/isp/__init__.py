"""What a camera's ISP needs to know."""
