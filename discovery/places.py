"""Which instances are listed, in SQL: said once, for lookups, for the directory and for the pages of the admin."""

from discovery import rules

GRACE = f"interval '{rules.GRACE.total_seconds()} seconds'"
OVERDUE = f"""i.status = 'healthy' and i.expires_at <= clock_timestamp() - {GRACE}"""
# Of `discovery_instance i` beside `discovery_service s`; what rules.is_listed says of an instance at hand. The sweep
# ends what is overdue within 0.4 s: the grace is for when it cannot.
WELL = f"""(i.protected or (i.status = 'healthy'
    and (i.expires_at is null or i.expires_at > clock_timestamp() - {GRACE})))"""
LISTED = f"({WELL} and s.maintenance is null)"
SERVICE_OF = "s.id = split_part(i.id, '#', 1)"
