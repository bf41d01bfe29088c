"""Hostile files: made by code, read in an armed process, judged by what must become of them."""
