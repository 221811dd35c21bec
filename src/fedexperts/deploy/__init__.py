"""A real federation: one server, sites on machines of their own, connected by Flower over TLS.

`folder` writes what everybody needs; `processes` starts Flower's programs, and `gateway` stands
before its server: behind an `entrance` that bears a crowd, it asks `members` who comes and `fleet`
what they may ask, within `limits`. Those run `app` on the server, the rounds of one of the `runs`,
and at a site `courier`, which asks `site`. `watch` looks on; what is written is its `owner`'s
alone.
"""
