from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("sagas", "0001_initial")]
    operations = [
        # Room on the page for the next version of a row: a step writes no index (HOT). Rows of one that is over stay as
        # they are, so what vacuum has to look at is the few that live: it may come sooner.
        migrations.RunSQL(
            "alter table sagas_saga set (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05)",
            migrations.RunSQL.noop,
        ),
        migrations.RunSQL(
            "alter table sagas_task set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000)",
            migrations.RunSQL.noop,
        ),
        migrations.RunSQL(
            "create index saga_tags on sagas_saga using gin (tags jsonb_path_ops)",
            "drop index saga_tags",
        ),
    ]
