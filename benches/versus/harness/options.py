"""What the programs of this package share at their start."""

import contextlib
import resource
import sys

DESCRIPTORS = 65_536


def chosen(names, known, kind):
    """Those of the known ones that the comma-separated names choose, in their usual order."""
    if names is None:
        return known
    wanted = set(names.split(","))
    if unknown := wanted - {one.name for one in known}:
        sys.exit(f"No such {kind}: {', '.join(unknown)}. There are {', '.join(one.name for one in known)}.")
    return [one for one in known if one.name in wanted]


def raise_descriptor_limit():
    """Makes room for thousands of connections; above the hard limit only root can."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((DESCRIPTORS, max(DESCRIPTORS, hard)), (min(DESCRIPTORS, hard), hard)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            return
