"""From a ``clip_grad`` config to rules, routes and schedules."""
