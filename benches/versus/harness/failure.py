"""The one error that belongs into a table."""


class Failure(Exception):
    """A server that did not do what a workload asks for."""
