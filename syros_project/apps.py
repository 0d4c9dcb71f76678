"""Which site the admin is."""

from django.contrib.admin import apps


class AdminConfig(apps.AdminConfig):
    default_site = "syros_project.admin.Site"
