"""Raw documents to try things with: two domains, the same every time.

`retail` is the shop of the demo, loaded at any scale and kept alive; `insurance` is a small portfolio for tests and
documentation. Each fits the transform modules of its domain in `transformers/`.
"""
