"""The sources that come with the project: documentation of Python, everyday talk, written principles."""
