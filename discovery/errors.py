"""What discovery refuses."""

from core.errors import Conflict, NotFound


class ServiceNotFound(NotFound):
    """No instance of such a service was ever registered."""


class InstanceNotFound(NotFound):
    """No such instance is registered any more; `reason` says why. Register it again."""


class InstanceSuperseded(Conflict):
    """Somebody else has registered under this id since: that instance is another one."""


class NoHealthyInstance(NotFound):
    """None of the services asked for has an instance that is healthy."""
