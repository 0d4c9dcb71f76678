"""Which instances are listed, in SQL: said once, for lookups, for the directory and for the pages of the admin."""

OVERDUE = """i.status = 'healthy' and i.expires_at <= clock_timestamp() - interval '1.5 seconds'"""
# Of `discovery_instance i` beside `discovery_service s`; what rules.is_listed says of an instance at hand. The sweep
# ends what is overdue within 0.4 s: the grace is for when it cannot.
WELL = """(i.protected or (i.status = 'healthy'
    and (i.expires_at is null or i.expires_at > clock_timestamp() - interval '1.5 seconds')))"""
LISTED = f"({WELL} and s.maintenance is null)"
SERVICE_OF = "s.id = split_part(i.id, '#', 1)"
