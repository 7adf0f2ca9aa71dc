"""A dataset whose items cannot be read."""

import isp_distill


class Unreadable(isp_distill.RawFolder):
    def __getitem__(self, index):
        raise AssertionError("a file was decoded")
