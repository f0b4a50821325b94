"""Files, archives, addresses and datasets, read as streams of records."""
