"""The library's version, which the packaging reads too."""

__version__ = "0.1.0"
"""The version of isp-distill: major, minor and patch number.

Examples:
    >>> len(isp_distill.__version__.split("."))
    3
"""
