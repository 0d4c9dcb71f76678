#!/usr/bin/env python
"""The command line of the server: serve, migrate, and Django's own commands."""

import gc
import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    # What is loaded at the start stays. Looking at it again and again would take an eighth of that time.
    gc.set_threshold(50_000, 20, 20)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")
    execute_from_command_line(sys.argv)
