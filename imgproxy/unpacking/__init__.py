"""Files on disk, made of content from outside; knows no image."""
