"""A real federation: one server, sites on machines of their own, connected by Flower over TLS.

`folder` writes what everybody needs; `processes` starts Flower's programs, and `gateway` stands
before its server: behind an `entrance` that bears a crowd, it asks `members` who comes and `fleet`
what they may ask, within `limits`; who was heard is `presence`. Those run `app` on the server,
which is `carrying` one of the `runs`, and at a site `courier`, which asks `site`. A site is
`joining`: it says `hello`, reads by `probe` why it is not let in, and tells by `consent` what
leaves. `watch` looks on, `backup` copies; what is written is its `owner`'s alone.
"""
