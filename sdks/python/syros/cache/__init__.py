"""Syros' cache for programs in Python."""
