"""Guards in Django, on PostgreSQL and on SQLite: the decorator, the row's own token, the migration."""

import random
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connections, migrations, models, router, transaction
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import MigrationWriter
from django.test.utils import CaptureQueriesContext

from syros.django import FencedModel, InstallGuard, StaleToken, guard, guarded


class Migration(migrations.Migration):
    dependencies = []
    operations = [
        InstallGuard(),
    ]


class Order(FencedModel):
    state = models.TextField(default="new")
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        app_label = "shop"


class Parcel(Order):
    weight = models.IntegerField(default=1)

    class Meta:
        app_label = "shop"


@guarded("orders/{order_id}")
def ship(order_id: int, *, fencing_token: int) -> None:
    Order.objects.filter(pk=order_id).update(state="shipped")


def change_state(order_id: int, state: str, fencing_token: int) -> None:
    order = Order.get_fenced(fencing_token, pk=order_id)
    order.state = state
    order.save(fencing_token=fencing_token)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second database of the project, `shop`."""
    file = tmp_path_factory.mktemp("shop") / "shop.db"
    about = {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "OPTIONS": {"timeout": 30}}
    connections.settings["shop"] = connections.configure_settings({"default": {}, "shop": about})["shop"]
    yield "shop"
    connections["shop"].close()
    del connections["shop"], connections.settings["shop"]


def migrate(using: str, direction: str) -> None:
    migration = Migration("0001_guard", "shop")
    with connections[using].schema_editor() as editor:
        if direction == "forwards":
            migration.apply(ProjectState(), editor)
        else:
            migration.unapply(ProjectState(), editor)


@pytest.fixture(params=["postgres", "sqlite"])
def using(request: pytest.FixtureRequest, database: None) -> Iterator[str]:
    alias = "default" if request.param == "postgres" else str(request.getfixturevalue("sqlite"))
    migrate(alias, "forwards")
    with connections[alias].schema_editor() as editor:
        editor.create_model(Order)
        editor.create_model(Parcel)
    yield alias
    with connections[alias].schema_editor() as editor:
        editor.delete_model(Parcel)
        editor.delete_model(Order)
    migrate(alias, "backwards")


@pytest.fixture
def order(using: str) -> Order:
    return Order.objects.using(using).create()


def stored(order: Order) -> tuple[str, int]:
    found = Order.objects.using(order._state.db).get(pk=order.pk)
    return found.state, found.fencing_token


def in_threads(count: int, work: Any, using: str) -> None:
    def run(number: int) -> None:
        try:
            work(number)
        finally:
            connections[using].close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


# -- the decorator -----------------------------------------------------------------------------------


def test_a_guarded_function_runs_with_the_largest_token_only(using: str, order: Order) -> None:
    @guarded("orders/{order_id}", using=using)
    def change(order_id: int, state: str = "shipped", *, fencing_token: int) -> str:
        """Change it."""
        Order.objects.using(using).filter(pk=order_id).update(state=state)
        return state

    assert change(order.pk, fencing_token=5) == "shipped"
    assert change(order_id=order.pk, state="back", fencing_token=5) == "back"
    with pytest.raises(StaleToken, match=f"stale fencing token 4 of orders/{order.pk}"):
        change(order.pk, "lost", fencing_token=4)
    assert stored(order)[0] == "back"
    change(order.pk + 1, fencing_token=4)  # another resource
    assert (change.__name__, change.__doc__) == ("change", "Change it.")


def test_a_guarded_function_uses_the_default_database(database: None) -> None:
    migrate("default", "forwards")
    try:
        with connections["default"].schema_editor() as editor:
            editor.create_model(Order)
        order = Order.objects.create()
        ship(order.pk, fencing_token=7)
        with pytest.raises(StaleToken):
            ship(order.pk, fencing_token=6)
        change_state(order.pk, "returned", 8)
        assert stored(order) == ("returned", 8)
    finally:
        with connections["default"].schema_editor() as editor:
            editor.delete_model(Order)
        migrate("default", "backwards")


def test_what_a_guarded_function_did_is_rolled_back_with_its_token(using: str, order: Order) -> None:
    @guarded("orders/{order.pk}", using=using)
    def change(order: Order, fencing_token: int, fails: bool) -> None:
        Order.objects.using(using).filter(pk=order.pk).update(state=f"by {fencing_token}")
        if fails:
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        change(order, 9, fails=True)
    assert stored(order)[0] == "new"
    change(order, 3, fails=False)
    assert stored(order)[0] == "by 3"


def test_a_function_without_the_parameters_is_refused_at_import() -> None:
    with pytest.raises(TypeError, match="no parameter fencing_token, order_id"):
        guarded("orders/{order_id}")(lambda order: order)

    async def change(fencing_token: int) -> None: ...

    with pytest.raises(TypeError, match="a plain function"):
        guarded("orders")(change)


def test_guard_is_for_use_in_a_transaction(using: str) -> None:
    with pytest.raises(transaction.TransactionManagementError):
        guard("a", 1, using=using)
    with transaction.atomic(using):
        guard("a", 1, using=using)


def test_a_refused_block_is_rolled_back_though_the_refusal_is_caught(using: str, order: Order) -> None:
    with transaction.atomic(using):
        guard("a", 2, using=using)
    with transaction.atomic(using):
        Order.objects.using(using).filter(pk=order.pk).update(state="lost")
        try:
            guard("a", 1, using=using)
        except StaleToken:
            pass
    assert stored(order)[0] == "new"


def test_a_block_around_goes_on_after_the_refusal(using: str, order: Order) -> None:
    with transaction.atomic(using):
        guard("a", 2, using=using)
    with transaction.atomic(using):
        with pytest.raises(StaleToken), transaction.atomic(using):
            guard("a", 1, using=using)
        Order.objects.using(using).filter(pk=order.pk).update(state="kept")
    assert stored(order)[0] == "kept"


def test_what_is_no_token_is_an_error_and_no_refusal(using: str) -> None:
    with pytest.raises(IntegrityError), transaction.atomic(using):
        guard("a", None, using=using)  # type: ignore[arg-type]


def test_debug_logs_the_call(using: str) -> None:
    connections[using].force_debug_cursor = True
    try:
        with transaction.atomic(using):
            guard("a", 1, using=using)
        assert any("syros_guard" in query["sql"] for query in connections[using].queries)
    finally:
        connections[using].force_debug_cursor = False


def test_guarded_functions_run_one_after_another(using: str, order: Order) -> None:
    """Reading and writing in one guarded transaction loses no update."""

    @guarded("orders/{order_id}", using=using)
    def add(order_id: int, *, fencing_token: int) -> None:
        found = Order.objects.using(using).get(pk=order_id)
        Order.objects.using(using).filter(pk=order_id).update(state=found.state + "+")

    in_threads(8, lambda _: [add(order.pk, fencing_token=1) for _ in range(5)], using)
    assert stored(order)[0] == "new" + "+" * 40


# -- the row's own token -----------------------------------------------------------------------------


def test_a_row_takes_the_same_and_a_larger_token(order: Order) -> None:
    for token in (5, 5, 8):
        order.state = f"by {token}"
        order.save(fencing_token=token)
        assert stored(order) == (f"by {token}", token)
        assert order.fencing_token == token


def test_a_row_refuses_a_smaller_token(using: str, order: Order) -> None:
    stale = Order.objects.using(using).get(pk=order.pk)
    order.save(fencing_token=8)
    stale.state = "lost"
    with pytest.raises(StaleToken, match=f"stale fencing token 7 of shop.Order {order.pk}"):
        stale.save(fencing_token=7)
    with pytest.raises(StaleToken):
        stale.delete(fencing_token=7)
    assert stored(order) == ("new", 8)
    assert stale.fencing_token == 0


def test_a_stale_holder_is_refused_also_after_reading_anew(using: str, order: Order) -> None:
    order.save(fencing_token=8)
    again = Order.objects.using(using).get(pk=order.pk)
    with pytest.raises(StaleToken):
        again.save(fencing_token=7)
    assert again.fencing_token == 8
    with pytest.raises(StaleToken):
        Order.get_fenced(7, using=using, pk=order.pk)


def test_who_holds_no_lock_may_not_overwrite_a_newer_holder(using: str, order: Order) -> None:
    form = Order.objects.using(using).get(pk=order.pk)
    form.state = "edited"
    form.save()
    assert stored(order) == ("edited", 0)
    order.save(fencing_token=8)
    form.state = "lost"
    with pytest.raises(StaleToken):
        form.save()
    assert stored(order) == ("new", 8)


def test_a_fenced_read_closes_the_row(using: str, order: Order) -> None:
    """Between the reading and the writing of the new holder nobody stale comes, so that nothing is overwritten."""
    stale = Order.objects.using(using).get(pk=order.pk)
    found = Order.get_fenced(8, using=using, pk=order.pk)
    with pytest.raises(StaleToken):
        stale.save(fencing_token=7)
    found.state = "done"
    found.save(fencing_token=8)
    assert stored(order) == ("done", 8)
    with pytest.raises(Order.DoesNotExist):
        Order.get_fenced(8, using=using, pk=0)


def test_a_fenced_read_sees_what_was_written_until_it_closed_the_row(
    using: str, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Order._raise_token

    def write_and_close(row: Order, token: int, alias: str) -> None:
        Order.objects.using(alias).filter(pk=row.pk).update(state="at the last moment")
        close(row, token, alias)

    monkeypatch.setattr(Order, "_raise_token", write_and_close)
    found = Order.get_fenced(8, using=using, pk=order.pk)
    assert (found.state, found.fencing_token) == ("at the last moment", 8)


@pytest.mark.parametrize("model", [Order, Parcel])
def test_a_row_compares_and_remembers_in_one_statement(using: str, model: type[Order]) -> None:
    row = model.objects.using(using).create()
    with CaptureQueriesContext(connections[using]) as queries:
        row._raise_token(5, using)
    (statement,) = [query["sql"] for query in queries]
    assert re.fullmatch(
        r'UPDATE "shop_order" SET "fencing_token" = 5 WHERE .*"fencing_token" <= 5.*', statement
    )


def test_some_fields_are_saved_with_the_token(order: Order) -> None:
    before = order.changed_at
    order.state = "saved"
    order.save(update_fields=["state"], fencing_token=5)
    assert stored(order) == ("saved", 5)
    order.save(fencing_token=6)
    assert order.changed_at > before  # auto_now, and with it signals: it is Django's save


def test_a_new_row_begins_with_its_token(using: str) -> None:
    made = Order(state="made")
    made.save(using=using, fencing_token=5)
    given = Order(pk=1000, state="made")
    given.save(using=using, fencing_token=6)
    assert (stored(made), stored(given)) == (("made", 5), ("made", 6))


def test_a_row_is_not_overwritten_by_one_made_with_its_key(using: str, order: Order) -> None:
    order.save(fencing_token=8)
    with pytest.raises(StaleToken):
        Order(pk=order.pk, state="lost").save(using=using, fencing_token=7)
    assert stored(order) == ("new", 8)


def test_a_row_that_is_gone_stays_gone(using: str, order: Order) -> None:
    stale = Order.objects.using(using).get(pk=order.pk)
    order.delete(fencing_token=8)
    with pytest.raises(StaleToken):
        stale.save(fencing_token=7)
    assert not Order.objects.using(using).exists()


def test_the_token_is_the_parent_s_in_a_model_that_inherits(using: str) -> None:
    parcel = Parcel(weight=2)
    parcel.save(using=using, fencing_token=5)
    stale = Parcel.objects.using(using).get(pk=parcel.pk)
    parcel.weight = 3
    parcel.save(fencing_token=6)
    with pytest.raises(StaleToken):
        stale.save(fencing_token=5)
    assert Parcel.objects.using(using).get().weight == 3
    assert Order.objects.using(using).get().fencing_token == 6


def test_a_save_that_fails_leaves_the_token(order: Order) -> None:
    order.save(fencing_token=5)
    order.state = None  # type: ignore[assignment]
    with pytest.raises(DatabaseError):
        order.save(fencing_token=9)
    assert order.fencing_token == 5
    assert stored(order) == ("new", 5)


def test_the_last_write_of_many_is_that_of_the_largest_token(using: str, order: Order) -> None:
    tokens = random.sample(range(1, 1000), 80)

    def write(number: int) -> None:
        for token in tokens[number::8]:
            found = Order.objects.using(using).get(pk=order.pk)
            found.state = f"by {token}"
            try:
                found.save(fencing_token=token)
            except StaleToken:
                pass

    in_threads(8, write, using)
    assert stored(order) == (f"by {max(tokens)}", max(tokens))


# -- the migration -----------------------------------------------------------------------------------


def test_the_migration_installs_and_removes(using: str) -> None:
    assert "syros_guard" in connections[using].introspection.table_names()
    migrate(using, "backwards")
    assert "syros_guard" not in connections[using].introspection.table_names()
    with pytest.raises(DatabaseError), transaction.atomic(using):
        guard("a", 1, using=using)
    migrate(using, "forwards")
    with transaction.atomic(using):
        guard("a", 1, using=using)


def test_the_migration_can_be_shown_as_sql(using: str) -> None:
    with connections[using].schema_editor(collect_sql=True) as editor:
        Migration("0001_guard", "shop").apply(ProjectState(), editor, collect_sql=True)
    assert any(line.startswith("create table if not exists syros_guard") for line in editor.collected_sql)


def test_the_migration_can_be_written() -> None:
    text = MigrationWriter(Migration("0001_guard", "shop")).as_string()
    assert "import syros.django\n" in text
    assert "syros.django.InstallGuard(\n        )," in text


def test_the_guard_is_installed_only_where_the_router_allows(
    database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nowhere:
        def allow_migrate(self, using: str, app_label: str, **hints: Any) -> bool:
            return (using, app_label) != ("default", "shop")

    monkeypatch.setattr(router, "routers", [Nowhere()])
    migrate("default", "forwards")
    assert "syros_guard" not in connections["default"].introspection.table_names()
