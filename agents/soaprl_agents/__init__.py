"""Learned policies that propose strategies; empty in this release."""
