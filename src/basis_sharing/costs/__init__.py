"""Currencies in which an option is paid: one file per currency, found by looking into this folder."""
