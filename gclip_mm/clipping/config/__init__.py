"""Parsing of a ``clip_grad`` config into rules, routes and schedules."""
