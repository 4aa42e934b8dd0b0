"""Raw documents to try things with: two domains, the same every time.

`retail` is a shop, `insurance` with `insurance_life` an insurer; both can be loaded at any scale, tell one customer's
story and be kept alive. `people` has what both have, with names and addresses of Faker; `dirt` is what makes them like
the data of real systems, and `writing` brings them into a database. Each fits the transform modules of its domain in
`transformers/`.
"""
