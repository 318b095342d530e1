"""The library behind the sub-commands of ``gclip``."""
