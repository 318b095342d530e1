"""All import-time patches of other packages."""
