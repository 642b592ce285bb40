"""Where on an image an answer comes from."""
