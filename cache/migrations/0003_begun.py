from django.db import migrations


class Migration(migrations.Migration):
    """Of two loads that began between the same invalidations, which is the older one?"""

    dependencies = [("cache", "0002_postgres")]
    operations = [
        migrations.RunSQL(
            "alter table cache_item add column begun bigint not null default 0",
            "alter table cache_item drop column begun",
        ),
    ]
