"""Rows of any known family, and the records that they become."""
