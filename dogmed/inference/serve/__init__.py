"""A web page, and answers as JSON."""
