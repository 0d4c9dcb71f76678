"""Guards in Django: a transaction, or a row, refuses the writes of who holds a lock no longer.

`@guarded("orders/{order_id}")` runs a function in a transaction that the database refuses to a stale fencing token;
`guard()` does so in a transaction of your own. Both need `InstallGuard()` in a migration. `FencedModel` keeps the token
on the row itself and needs only its column.
"""

from __future__ import annotations

import functools
import inspect
import re
import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from django.db import DatabaseError, NotSupportedError, connections, models, router, transaction
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation

from syros.guard import CALLS, StaleToken, is_stale, statements

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FencedModel", "InstallGuard", "StaleToken", "guard", "guarded"]

P = ParamSpec("P")
R = TypeVar("R")
DIALECTS = {"postgresql": "postgres", "mysql": "mysql", "sqlite": "sqlite"}
DROPS = {
    "postgres": ["drop function syros_guard(text, bigint)", "drop table syros_guard"],
    "mysql": ["drop procedure syros_guard", "drop table syros_guard"],
    "sqlite": ["drop view syros_guard_call", "drop table syros_guard"],
}


def dialect_of(using: str) -> str:
    """Raises: NotSupportedError."""
    vendor = connections[using].vendor
    if vendor not in DIALECTS:
        raise NotSupportedError(f"There is no guard for {vendor}.")
    return DIALECTS[vendor]


def guard(resource: str, fencing_token: int, *, using: str = "default") -> None:
    """Refuse this transaction if the resource has seen a larger token; else remember this one.

    Call it inside `transaction.atomic()`, before anything is read or written. The resource's other guarded transactions
    wait until this one ends. A block whose guard refused is rolled back, also if the exception is caught in it.

    Parameters: the `resource`, whatever you call it (in MySQL at most 255 characters); the `fencing_token` of your
    grant, 1 to 2^63 - 1; the database, `using`.
    Raises: StaleToken; TransactionManagementError outside of a transaction; DatabaseError.
    """
    if transaction.get_autocommit(using):
        raise transaction.TransactionManagementError("guard() is for use inside transaction.atomic().")
    with connections[using].cursor() as cursor:
        try:
            cursor.execute(CALLS[dialect_of(using)], [resource, fencing_token])
        except DatabaseError as error:
            if not is_stale(error):
                raise
            # PostgreSQL refuses the rest of the transaction by itself; the others would not.
            transaction.set_rollback(True, using)
            raise StaleToken(resource, fencing_token) from error


def guarded(resource: str, *, using: str = "default") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Run a function in a transaction that is refused to a stale token.

        @guarded("orders/{order_id}")
        def ship(order_id, *, fencing_token): ...

    The transaction begins with the call and is committed when the function returns. What the function reads, it reads
    after the guard.

    Parameters: the `resource`, with the names of the function's own parameters in braces, as in str.format; the
    database, `using`. The function takes the token of the caller's grant as `fencing_token`.
    Raises: TypeError, for a function that does not have these parameters; the function then raises as `guard()`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        check(function, signature, resource)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            call = signature.bind(*args, **kwargs)
            call.apply_defaults()
            name = resource.format_map(call.arguments)
            with transaction.atomic(using):
                guard(name, call.arguments["fencing_token"], using=using)
                return function(*args, **kwargs)

        return run

    return decorate


def check(function: Callable[..., Any], signature: inspect.Signature, resource: str) -> None:
    """Say at import what would go wrong at every call. Raises: TypeError."""
    kinds = inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction
    if any(is_kind(function) for is_kind in kinds):
        raise TypeError(f"{function.__qualname__}: Django's transactions need a plain function")
    fields = [field for _, field, _, _ in string.Formatter().parse(resource) if field is not None]
    named = {re.split(r"[.\[]", field)[0] for field in fields}
    if missing := sorted({*named, "fencing_token"} - signature.parameters.keys()):
        raise TypeError(f"{function.__qualname__} has no parameter {', '.join(missing)}")


class FencedModel(models.Model):
    """A row that keeps the largest fencing token it was written with, and refuses writes with a smaller one.

    `get_fenced()` reads a row and closes it to smaller tokens; `save()` and `delete()` compare in one statement and
    lock the row. What goes past them (`QuerySet.update`, `bulk_update`, cascades, SQL) is not compared.
    """

    fencing_token = models.BigIntegerField(default=0, editable=False)

    class Meta:
        abstract = True

    @classmethod
    def get_fenced(cls, fencing_token: int, *, using: str | None = None, **lookup: Any) -> Self:
        """The row, read after it was closed to smaller tokens: nobody stale writes between this and your `save()`.

        Parameters: the `fencing_token` of your grant; the database, `using`; which row, as for `get()`.
        Raises: StaleToken; DoesNotExist, MultipleObjectsReturned.
        """
        using = using or router.db_for_write(cls)
        rows = cls._base_manager.using(using)
        row = rows.get(**lookup)
        with transaction.atomic(using):
            row._raise_token(fencing_token, using)
            # For update: in a transaction that has read before, MySQL would else answer what was there then.
            return rows.select_for_update().get(pk=row.pk)

    def save(
        self,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Any = None,
        *,
        fencing_token: int | None = None,
    ) -> None:
        """As Django's, unless the row has seen a larger `fencing_token` than this one.

        Without one, the instance's own is compared: a form or the admin, which hold no lock, are refused if a newer
        holder has written since they read.

        Raises: StaleToken, also when the row is gone.
        """
        using = using or router.db_for_write(type(self), instance=self)
        token, before = self.fencing_token if fencing_token is None else fencing_token, self.fencing_token
        try:
            with transaction.atomic(using):
                if self.pk is not None and not force_insert:
                    self._raise_token(token, using)
                self.fencing_token = token
                super().save(
                    force_insert=force_insert,
                    force_update=force_update,
                    using=using,
                    update_fields=update_fields,
                )
        except BaseException:
            self.fencing_token = before
            raise

    def delete(
        self, using: str | None = None, keep_parents: bool = False, *, fencing_token: int | None = None
    ) -> tuple[int, dict[str, int]]:
        """As Django's, unless the row has seen a larger `fencing_token`; see `save()`. Its token is gone with the row.

        Raises: StaleToken, also when the row is gone.
        """
        using = using or router.db_for_write(type(self), instance=self)
        with transaction.atomic(using):
            self._raise_token(self.fencing_token if fencing_token is None else fencing_token, using)
            return super().delete(using=using, keep_parents=keep_parents)

    def _raise_token(self, token: int, using: str) -> None:
        """Compare and remember in one statement, which locks the row. A row that is still to be made has no token."""
        # By key and in the table that has the column: over a join, Django selects first and updates then.
        owner = self._meta.get_field("fencing_token").model
        row = owner._base_manager.using(using).filter(pk=getattr(self, owner._meta.pk.attname))
        if row.filter(fencing_token__lte=token).update(fencing_token=token):
            return
        if not self._state.adding or row.exists():
            raise StaleToken(f"{self._meta.label} {self.pk}", token)


class InstallGuard(Operation):
    """A migration's operation: what `guard()` needs, as `manage.py print_guard` prints it for the database at hand."""

    reduces_to_sql = True
    reversible = True

    def state_forwards(self, app_label: str, state: Any) -> None:
        pass

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: Any, to_state: Any
    ) -> None:
        self._execute(app_label, schema_editor, statements)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: Any, to_state: Any
    ) -> None:
        self._execute(app_label, schema_editor, DROPS.__getitem__)

    def describe(self) -> str:
        return "Install the guard against stale fencing tokens"

    @property
    def migration_name_fragment(self) -> str:
        return "install_guard"

    @staticmethod
    def _execute(
        app_label: str, schema_editor: BaseDatabaseSchemaEditor, find: Callable[[str], list[str]]
    ) -> None:
        using = schema_editor.connection.alias
        if router.allow_migrate(using, app_label):
            for statement in find(dialect_of(using)):
                schema_editor.execute(statement, params=None)
