"""Images in registries: the distribution API, mirrors, redirects, signatures."""
