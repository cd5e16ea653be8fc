"""Networks from files: a format is one file here."""
