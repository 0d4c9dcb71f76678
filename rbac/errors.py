"""What access control can refuse."""

from core.errors import Conflict, NotFound, Unauthenticated


class WrongCredentials(Unauthenticated):
    """Username or password is wrong, or the account is disabled."""


class TokenInvalid(Unauthenticated):
    """The token is wrong, expired or logged out."""


class ApiKeyNotFound(NotFound):
    """There is no such API key in this namespace."""


class LocksAreHeld(Conflict):
    """Locks are held in this namespace: where they are kept cannot change now."""
