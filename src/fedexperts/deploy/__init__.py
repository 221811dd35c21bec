"""A real federation: one server, sites on machines of their own, connected by Flower over TLS.

`folder` writes what everybody needs, `processes` starts Flower's programs, `app` is what those run, `runs` is a run.
"""
