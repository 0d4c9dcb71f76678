from django.db import migrations, models

import core.models


class Migration(migrations.Migration):
    dependencies = [("core", "0003_timeline")]
    operations = [
        migrations.CreateModel(
            name="Session",
            fields=[
                ("id", models.CharField(db_collation="C", max_length=400, primary_key=True, serialize=False)),
                ("version", models.BigIntegerField(default=0)),
                ("owner", models.TextField()),
                ("ttl_seconds", models.FloatField()),
                ("lock_delay_seconds", models.FloatField(default=0.0)),
                ("metadata", core.models.JSONTextField(null=True)),
                ("opened_at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
                ("reason", models.TextField(null=True)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("ended_at__isnull", True)), fields=["id"], name="session_live"
                    )
                ],
            },
        ),
        migrations.RunSQL(
            # Room on the page for the next version of a row: keepalives stay off the indexes (HOT).
            "alter table core_session set (fillfactor = 50)",
            migrations.RunSQL.noop,
        ),
        migrations.CreateModel(
            name="Retention",
            fields=[
                ("id", models.CharField(db_collation="C", max_length=400, primary_key=True, serialize=False)),
                ("position", models.BigIntegerField()),
            ],
        ),
        migrations.AddField(
            "cluster",
            "token_floor",
            models.BigIntegerField(default=0, help_text="no lock's token starts below this"),
        ),
        migrations.RemoveField("namespace", "token_floor"),
    ]
