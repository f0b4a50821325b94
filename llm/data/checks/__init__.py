"""What validate judges: figures of the tables, ledgers, the profile of a corpus."""
