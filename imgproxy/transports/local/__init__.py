"""Images in local files and directories, one module for each format."""
