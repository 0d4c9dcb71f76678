from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("core", "0001_initial")]
    operations = [
        migrations.RunSQL(
            [
                "insert into core_cluster (id, epoch, identity) values (1, 1, gen_random_uuid())",
                "insert into core_namespace (name, floor, token_floor) values ('default', 0, 0)",
                # Room on the page for the next version of a row: updates stay off the indexes (HOT).
                "alter table core_stream set (fillfactor = 70)",
                "alter table core_process set (fillfactor = 50)",
            ],
            migrations.RunSQL.noop,
        )
    ]
