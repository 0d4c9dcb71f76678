from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("locks", "0001_initial")]
    operations = [
        # Room on the page for the next version of a row: updates stay off the indexes (HOT).
        migrations.RunSQL(
            "alter table locks_lock set (fillfactor = 70)", migrations.RunSQL.noop
        )
    ]
