#!/usr/bin/env python
"""The command line of the server: serve, migrate, and Django's own commands."""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")
    execute_from_command_line(sys.argv)
