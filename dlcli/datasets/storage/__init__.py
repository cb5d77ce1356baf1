"""Where data lie: roots, downloads and the cache."""
