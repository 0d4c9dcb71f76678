"""A Django project of one file whose cache is Syros: `python examples/django_cache/shop.py [URL]`."""

import os
import sys
import time

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="signs what is pickled, so that nobody else's pickles are read",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    CACHES={
        "default": {
            "BACKEND": "syros.cache.django.SyrosCache",
            "LOCATION": sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8080",
            "TIMEOUT": 300,
            "OPTIONS": {"api_key": os.environ.get("SYROS_API_KEY"), "timeout": 2.0, "on_error": "miss"},
        }
    },
)
django.setup()

from django.core.cache import cache  # noqa: E402
from django.db import transaction  # noqa: E402

from syros.cache.django import cached  # noqa: E402

PRICES = {17: 30}  # the database


@cached(600, tags=lambda number: [f"product:{number}", "catalogue"], stale=60)
def product(number: int) -> dict[str, object]:
    print(f"loading {number}")
    time.sleep(0.1)
    return {"number": number, "price": PRICES[number]}


def change_price(number: int, price: int) -> None:
    with transaction.atomic():
        PRICES[number] = price
        cache.invalidate_tags(f"product:{number}")  # with the commit; not at all if it is rolled back


def main() -> None:
    cache.clear()
    print(product(17), product(17))
    change_price(17, 25)
    print(product(17))

    sale = cache.tagged("sale", "catalogue")
    sale.set("teaser", "Everything must go", 3600)
    sale.set_many({"banner": b"\x89PNG", "ends": {"at": (18, 30)}})
    cache.invalidate_tags("sale")
    print(cache.get_many(["teaser", "banner", "ends"]))

    print(cache.get_or_set("visits", 0), cache.incr("visits"), cache.add("visits", 5))


if __name__ == "__main__":
    main()
