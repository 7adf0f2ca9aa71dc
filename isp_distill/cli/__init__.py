"""The shell: the Python functions as commands, one thin command each."""

from isp_distill.cli.main import main

__all__ = ["main"]
