"""Files behind a URL, through fsspec; imported only where a path is one (extra `remote`)."""
